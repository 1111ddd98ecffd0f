"""Fine-tuning jobs with the stock `openai` client and its own strict checks, over a real server.

The test plays the worker, through the same store functions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from api_testing import PLAN, Server
from fine_tuning_testing import GRADER, OPTIONS, Make, claimed, ours

from api.openai.fine_tuning_job import STATUS
from s2d.events import NewEvent
from s2d.plan.request import PlanRequest
from s2d.services import fine_tuning
from s2d.services.context import Context
from s2d.services.progress import EtaRange, Progress, StageProgress
from s2d.settings import Settings
from s2d.store import jobs, repeats, students
from s2d.store.states import STATES


def test_a_job_is_made_and_both_faces_show_it(stock: openai.OpenAI, make: Make, remote: httpx.Client) -> None:
    made = make(
        {"controls": ["direct_grpo"], "student_rl": False},
        suffix="First try", seed=7, metadata={"team": "red"}, method={"type": "reinforcement", "reinforcement":
        {"grader": GRADER, "hyperparameters": {"n_epochs": "auto"}}}, hyperparameters={"n_epochs": "auto"},
    )  # fmt: skip
    assert (made.status, made.model, made.seed, made.metadata) == ("queued", PLAN["student"], 7, {"team": "red"})
    assert (made.organization_id, made.result_files) == ("s2d", [])
    assert made.method is not None
    assert made.method.reinforcement is not None
    assert made.method.reinforcement.grader.to_dict() == GRADER
    for nothing in (
        "error",
        "fine_tuned_model",
        "finished_at",
        "trained_tokens",
        "validation_file",
        "estimated_finish",
    ):
        assert getattr(made, nothing) is None
    assert stock.fine_tuning.jobs.retrieve(made.id) == made
    native = remote.get(f"/v1/jobs/{made.id}").json()
    assert (native["plan"], native["training_file"]) == (ours(made)["plan"], made.training_file)
    plan = remote.get(f"/v1/plans/{native['plan']}").json()
    assert (plan["seed"], plan["controls"]) == (7, ["direct_grpo"])
    assert plan["verifier"] == {"name": "exact", "options": {"ignore_case": False}}


def test_it_is_the_plan_that_the_native_face_makes(make: Make, remote: httpx.Client, file_id: str) -> None:
    plan = remote.post("/v1/plans", json=PLAN | {"training_file": file_id, "seed": 3}).json()
    assert ours(make(seed=3))["plan"] == plan["id"]


def test_a_native_job_is_shown(stock: openai.OpenAI, remote: httpx.Client, file_id: str) -> None:
    plan = remote.post("/v1/plans", json=PLAN | {"training_file": file_id, "seed": 5}).json()["id"]
    native = remote.post("/v1/jobs", json={"plan": plan, "training_file": file_id, "name": "mine"}).json()
    seen = stock.fine_tuning.jobs.retrieve(native["id"])
    assert (seen.model, seen.seed, seen.metadata, seen.method) == (PLAN["student"], 5, None, None)
    assert ours(seen)["teacher"] == PLAN["teacher"]
    assert list(stock.fine_tuning.jobs.list()) == [seen]


def test_our_own_grader_chooses_the_verifier(make: Make, remote: httpx.Client) -> None:
    """The client's types have no name for it, so its answer says it beside them."""
    grader = {"type": "s2d", "verifier": {"name": "numeric", "options": {"abs_tol": 0.5}}}
    made = make(method={"type": "reinforcement", "reinforcement": {"grader": grader}})
    assert made.method is not None
    assert made.method.type == "reinforcement"
    assert made.method.model_extra == {"s2d": {"grader": grader}}
    plan = remote.get(f"/v1/plans/{ours(made)['plan']}").json()
    assert plan["verifier"] == {"name": "numeric", "options": {"abs_tol": 0.5}}


def test_every_field_of_a_plans_request_can_be_given(make: Make) -> None:
    """None is forgotten, nor will be: the body's own are the other three."""
    from api.openai.fine_tuning_job import TrainingOptions

    schema = TrainingOptions.model_json_schema()["properties"].keys()
    assert PlanRequest.model_fields.keys() - schema == {"student", "training_file", "seed"}
    assert make({"labels": {"teacher_rl": 40}, "gates": {"c2": {"max_kl": 1}}, "verifier": "numeric"}).id


def test_the_whole_life_of_a_job(stock: openai.OpenAI, ctx: Context, make: Make) -> None:
    made = make()
    claim = claimed(ctx, made.id)
    stages = (StageProgress(id="teacher_rl", kind="teacher_rl", state="running", tokens=900),)
    progress = Progress(stage="teacher_rl", step=3, steps=40, eta_s=EtaRange(low=60, high=90), stages=stages)
    with ctx.db.begin() as session:
        jobs.record(session, claim, progress.model_dump(mode="json"), [])
    running = stock.fine_tuning.jobs.retrieve(made.id)
    assert (running.status, running.trained_tokens) == ("running", None)
    assert running.estimated_finish is not None
    assert 55 < running.estimated_finish - running.created_at < 200
    assert (ours(running)["stage"], ours(running)["step"], ours(running)["steps"]) == ("teacher_rl", 3, 40)
    with ctx.db.begin() as session:
        jobs.finish(session, claim, "succeeded", student_id="student-x")
    done = stock.fine_tuning.jobs.retrieve(made.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "student-x", 900)
    assert (done.finished_at is not None, done.estimated_finish) == (True, None)
    for change in (stock.fine_tuning.jobs.cancel, stock.fine_tuning.jobs.pause, stock.fine_tuning.jobs.resume):
        with pytest.raises(openai.ConflictError):
            change(made.id)


def test_a_failed_job_says_why(stock: openai.OpenAI, ctx: Context, make: Make) -> None:
    made = make()
    error = {"code": "gate_c1", "message": "no gain", "stage": "teacher_rl", "step": 9}
    claim = claimed(ctx, made.id)
    with ctx.db.begin() as session:
        jobs.finish(session, claim, "failed", error=error)
    failed = stock.fine_tuning.jobs.retrieve(made.id)
    assert failed.error is not None
    assert (failed.status, failed.error.code, failed.error.message) == ("failed", "gate_c1", "no gain")
    assert stock.fine_tuning.jobs.resume(made.id).status == "queued"


def test_cancel_pause_and_resume(stock: openai.OpenAI, ctx: Context, make: Make, remote: httpx.Client) -> None:
    calls = stock.fine_tuning.jobs
    job_id = make().id
    paused = calls.pause(job_id)
    assert (paused.status, ours(paused)["state"]) == ("queued", "paused")
    assert ours(calls.resume(job_id))["state"] == "queued"
    claim = claimed(ctx, job_id)
    assert (calls.pause(job_id).status, calls.cancel(job_id).status) == ("running", "running")
    assert remote.get(f"/v1/jobs/{job_id}").json()["state"] == "cancelling"
    with ctx.db.begin() as session:
        jobs.finish(session, claim, "failed")
    assert calls.retrieve(job_id).status == "cancelled"
    assert calls.cancel(job_id).status == "cancelled"


def test_every_state_has_a_status() -> None:
    assert STATUS.keys() == set(STATES)


def test_the_suffix_is_in_the_students_id() -> None:
    names = {"First try": "student-first-try-0a", "Käse/../ß%2F": "student-kase-2f-0a", None: "student-0a"}
    assert {suffix: students.id_of("job_0a", suffix=suffix) for suffix in names} == names
    assert students.id_of("job_0a", "direct_grpo", suffix="x") == "student-x-0a.direct_grpo"


def test_pages_and_filters(stock: openai.OpenAI, make: Make) -> None:
    odd = {'a"b.c$[0]': 'ä"\\'}
    metadata = [None, {"team": "red", "n": "1"}, {"team": "red"}, {"team": "", "n": "1"}, odd]
    made = [make(metadata=one).id if one else make().id for one in metadata]

    def listed(**how: Any) -> list[int]:
        return [made.index(job.id) for job in stock.fine_tuning.jobs.list(**how)]

    assert listed(limit=2) == [4, 3, 2, 1, 0], "three pages, which the client turns by itself"
    assert listed(metadata={"team": "red"}, limit=1) == [2, 1]
    assert listed(metadata={"team": "red", "n": "1"}) == [1]
    assert listed(metadata={"team": ""}) == [3]
    assert listed(metadata={"team": "blue"}) == []
    assert listed(metadata=odd) == [4]
    assert listed(extra_query={"metadata": "null"}) == [0]
    assert stock.fine_tuning.jobs.list(limit=2, after=made[2]).has_more is False
    with pytest.raises(openai.BadRequestError) as wrong:
        stock.fine_tuning.jobs.list(after="job_none")
    assert wrong.value.code == "invalid_cursor"


def test_a_filter_reads_on_until_the_page_is_full(
    stock: openai.OpenAI, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fine_tuning, "_BATCH", 2)
    made = [make(metadata={"n": str(n % 2)}).id for n in range(7)]
    first = stock.fine_tuning.jobs.list(limit=3, metadata={"n": "0"})
    assert ([job.id for job in first.data], first.has_more) == ([made[6], made[4], made[2]], True)
    rest = stock.fine_tuning.jobs.list(limit=3, metadata={"n": "0"}, after=made[2])
    assert ([job.id for job in rest.data], rest.has_more) == ([made[0]], False)


def test_events_and_checkpoints(stock: openai.OpenAI, ctx: Context, make: Make) -> None:
    made, other = make(), make()
    claim = claimed(ctx, made.id)
    new = []
    for step in (1, 2, 3):
        metrics = {"steps": 3, "tokens": 9, "metrics": {"loss": 1 / step, "reward_mean": 0.5}}
        new += [
            NewEvent(type="metrics", stage="warmup", step=step, data=metrics),
            NewEvent(type="checkpoint", stage="warmup", step=step, message="written", data={"bytes": 5}),
        ]
    new.append(NewEvent(type="message", level="warn", message="careful"))
    with ctx.db.begin() as session:
        jobs.record(session, claim, {}, new)
    events = list(stock.fine_tuning.jobs.list_events(made.id, limit=2))
    assert [event.message for event in events][::-1][:3] == ["job queued", "job running", "metrics of warmup, step 1"]
    assert len(events) == len({event.id for event in events}) == 9
    assert (events[0].level, events[0].type, events[2].type) == ("warn", "message", "metrics")
    assert events[2].data == {"steps": 3, "tokens": 9, "metrics": {"loss": 1 / 3, "reward_mean": 0.5}}
    assert events[2].model_extra == {"s2d": {"seq": 7, "type": "metrics", "stage": "warmup", "step": 3}}
    checkpoints = list(stock.fine_tuning.jobs.checkpoints.list(made.id, limit=1))
    assert [(one.step_number, one.metrics.train_loss) for one in checkpoints] == [(3, 1 / 3), (2, 0.5), (1, 1.0)]
    assert checkpoints[0].fine_tuned_model_checkpoint == f"{made.id}:warmup:step-3"
    assert list(stock.fine_tuning.jobs.checkpoints.list(other.id)) == []
    for cursor in (events[0].id, checkpoints[0].id, "7", "ftevent_", f"{events[0].id}0" * 4, "ftevent_x_1"):
        with pytest.raises(openai.BadRequestError) as wrong:
            stock.fine_tuning.jobs.list_events(other.id, after=cursor)
        assert wrong.value.code == "invalid_cursor"
    with pytest.raises(openai.NotFoundError):
        stock.fine_tuning.jobs.list_events("job_none")
    with pytest.raises(openai.NotFoundError):
        stock.fine_tuning.jobs.checkpoints.list("job_none")


def test_a_tenant_sees_its_own(stock: openai.OpenAI, ctx: Context, make: Make, server: Server, key: str) -> None:
    made = make(metadata={"team": "red"})
    auth = {"authorization": f"Bearer {key}"}
    scopes = {"name": "other", "tenant": "other", "scopes": ["train"]}
    secret = httpx.post(f"{server.url}/v1/keys", json=scopes, headers=auth, trust_env=False).json()["secret"]
    other = stock.with_options(api_key=secret)
    assert list(other.fine_tuning.jobs.list()) == list(other.fine_tuning.jobs.list(metadata={"team": "red"})) == []
    for call in (
        other.fine_tuning.jobs.retrieve,
        other.fine_tuning.jobs.cancel,
        other.fine_tuning.jobs.pause,
        other.fine_tuning.jobs.resume,
        other.fine_tuning.jobs.list_events,
        other.fine_tuning.jobs.checkpoints.list,
    ):
        with pytest.raises(openai.NotFoundError) as hidden:
            call(made.id)
        assert hidden.value.code == "job_not_found"
    with pytest.raises(openai.NotFoundError):
        other.fine_tuning.jobs.create(
            model=str(PLAN["student"]), training_file=made.training_file, extra_body={"s2d": OPTIONS}
        )
    theirs = replace(ctx, db=ctx.db.of("other"))
    assert fine_tuning.list_page(theirs, after=None, limit=5, metadata=None, without_metadata=False) == ([], False)


def test_the_same_request_of_two_tenants_is_two_jobs(ctx: Context, make: Make) -> None:
    """A repetition finds what its own tenant has made."""
    job = make()
    sending = [repeats.Sending("fine_tuning", "f", again=True) for _ in range(2)]
    with ctx.db.of("a").begin() as session:
        repeats.remember(session, sending[0], job.id)
        assert repeats.recall(session, sending[1]) == job.id
    with ctx.db.of("b").begin() as session:
        assert repeats.recall(session, sending[1]) is None


def test_a_student_is_deleted_with_its_weights(
    stock: openai.OpenAI, ctx: Context, make: Make, settings: Settings
) -> None:
    job_id = make().id
    folder = settings.job_dir(job_id) / "models" / "rl_student"
    outside = settings.state_dir / "base"
    for path in (folder, outside):
        path.mkdir(parents=True)
        (path / "model.safetensors").write_bytes(b"weights")
    with ctx.db.begin() as session:
        for name, arm, path in (("s", "workflow", folder), ("s.replay", "replay", folder), ("s.base", "base", outside)):
            students.register(session, student_id=name, job_id=job_id, arm=arm, path=str(path))
    deleted = stock.models.delete("s.replay")
    assert (deleted.id, deleted.object, deleted.deleted) == ("s.replay", "model", True)
    assert folder.is_dir(), "another student has the same weights"
    assert stock.models.delete("s").deleted
    assert list(folder.parent.iterdir()) == []
    assert stock.models.delete("s.base").deleted
    assert outside.is_dir(), "a base model is the operator's"
    for name in ("s", "../../etc"):
        with pytest.raises(openai.NotFoundError) as gone:
            stock.models.delete(name)
        assert gone.value.code == "model_not_found"
    assert list(stock.models.list()) == []
    assert stock.fine_tuning.jobs.retrieve(job_id).id == job_id
