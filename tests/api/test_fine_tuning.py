"""Fine-tuning jobs with the stock `openai` client and its own strict checks, over a real server.

The test plays the worker, through the same store functions.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import httpx
import openai
import pytest
from api_testing import PLAN, Server, assert_problem, jsonl
from fastapi import FastAPI
from openai.types.fine_tuning import FineTuningJob

from api.openai.fine_tuning_job import STATUS
from s2d.events import NewEvent
from s2d.plan.request import PlanRequest
from s2d.services import fine_tuning, plans
from s2d.services.context import Context
from s2d.services.progress import EtaRange, Progress, StageProgress
from s2d.settings import Settings
from s2d.store import jobs, repeats, students
from s2d.store.states import STATES
from s2d.store.tables import IdempotencyRow

OPTIONS: dict[str, Any] = {"teacher": PLAN["teacher"], "hardware": PLAN["hardware"]}
GRADER: Any = {
    "type": "string_check",
    "name": "same",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def ours(job: FineTuningJob) -> dict[str, Any]:
    """What only s2d says of a job."""
    assert job.model_extra is not None
    return job.model_extra["s2d"]  # type: ignore[no-any-return]


@pytest.fixture
def key(server: Server, settings: Settings) -> str:  # noqa: ARG001 - the server makes it
    return settings.key_file.read_text().strip()


@pytest.fixture
def stock(server: Server, key: str) -> Iterator[openai.OpenAI]:
    url = f"{server.url}/v1"
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def ctx(app: FastAPI, server: Server) -> Context:  # noqa: ARG001 - the server opens it
    return app.state.context  # type: ignore[no-any-return]


@pytest.fixture
def file_id(stock: openai.OpenAI) -> str:
    return stock.files.create(file=("labels.jsonl", jsonl(100)), purpose="fine-tune").id


@pytest.fixture
def make(stock: openai.OpenAI, file_id: str) -> Callable[..., FineTuningJob]:
    def make(s2d: dict[str, Any] | None = None, **how: Any) -> FineTuningJob:
        body = {"model": PLAN["student"], "training_file": file_id, "extra_body": {"s2d": OPTIONS | (s2d or {})}}
        return stock.fine_tuning.jobs.create(**(body | how))  # type: ignore[arg-type]

    return make


@pytest.fixture
def body(file_id: str) -> dict[str, Any]:
    """The same as plain JSON."""
    return {"model": PLAN["student"], "training_file": file_id, "s2d": OPTIONS}


Make = Callable[..., FineTuningJob]


def claimed(ctx: Context, job_id: str) -> jobs.Claim:
    with ctx.db.begin() as session:
        claim = jobs.claim(session, job_id, "worker", 60)
    assert claim is not None
    return claim


# --- both faces -----------------------------------------------------------------------------------------------------


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


# --- its life -------------------------------------------------------------------------------------------------------


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


# --- pages ----------------------------------------------------------------------------------------------------------


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


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"s2d": None}, 400, "s2d"),
        ({"s2d": {}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"epochs": 3}}, 400, "s2d.epochs"),
        ({"s2d": OPTIONS | {"student": "x"}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"seed": 1}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"teacher": "/etc"}}, 400, "s2d.teacher"),
        ({"s2d": OPTIONS | {"teacher": 5}}, 400, "s2d.teacher"),
        ({"s2d": OPTIONS | {"verifier": "astrology"}}, 400, "s2d.verifier.name"),
        ({"s2d": OPTIONS | {"verifier": {"name": "astrology"}}}, 400, "s2d.verifier.name"),
        ({"s2d": OPTIONS | {"unlabeled_prompts": 5}}, 400, "s2d"),
        ({"s2d": OPTIONS | {"labels": {"teacher_rl": 10**6}}}, 400, "s2d.labels"),
        ({"teacher": "Qwen/Qwen3-8B"}, 400, "teacher"),
        ({"model": "/etc/passwd"}, 400, "model"),
        ({"model": "gpt-4o-mini"}, 400, "model"),
        ({"model": "nobody/\ud800"}, 400, "model"),
        ({"training_file": "file_none"}, 404, "training_file"),
        ({"training_file": "file_\u0000"}, 400, "training_file"),
        ({"suffix": "x" * 65}, 400, "suffix"),
        ({"suffix": "日本"}, 400, "suffix"),
        ({"seed": -1}, 400, "seed"),
        ({"seed": 2**31}, 400, "seed"),
        ({"metadata": {"k": 1}}, 400, "metadata.k"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"metadata": {str(n): "" for n in range(17)}}, 400, "metadata"),
        ({"validation_file": "file_none"}, 400, "validation_file"),
        ({"integrations": [{"type": "wandb", "wandb": {"project": "x"}}]}, 400, "integrations"),
        ({"hyperparameters": {"n_epochs": 3}}, 400, "hyperparameters.n_epochs"),
        ({"method": {"type": "supervised", "supervised": {}}}, 400, "method.type"),
        ({"method": {"type": "dpo"}}, 400, "method.type"),
        ({"method": {"type": "reinforcement"}}, 400, "method.reinforcement"),
    ],
)
def test_bad_requests(
    remote: httpx.Client, body: dict[str, Any], change: dict[str, Any], status: int, param: str
) -> None:
    # Not as httpx would write it, which cannot write all of these.
    content, headers = json.dumps(body | change), {"content-type": "application/json"}
    refused = assert_problem(remote.post("/v1/fine_tuning/jobs", content=content, headers=headers), status)
    assert refused["error"]["param"] == param, refused
    assert remote.get("/v1/jobs").json()["data"] == []


def test_what_says_nothing_is_taken(make: Make) -> None:
    assert make(integrations=[], validation_file=None, seed=None, suffix=None, metadata=None).seed == 0


@pytest.mark.parametrize(
    ("grader", "code", "word"),
    [
        ({"type": "python", "name": "p", "source": "print(1)"}, "invalid_request", "python"),
        ({"type": "score_model", "name": "s", "model": "gpt", "input": []}, "invalid_request", "score_model"),
        ({"type": "text_similarity", "name": "t", "input": "", "reference": "", "evaluation_metric": "bleu"},
         "invalid_request", "text_similarity"),
        (GRADER | {"operation": "like"}, "unsupported_grader", "like"),
        (GRADER | {"reference": "{{item.other}}"}, "unsupported_grader", "label"),
        (GRADER | {"input": "{{sample.output_json.answer}}"}, "unsupported_grader", "label"),
        ({"type": "multi", "name": "m", "graders": {"a": GRADER}, "calculate_output": "a"},
         "unsupported_grader", "one"),
        ({"type": "s2d", "verifier": "astrology"}, "invalid_request", "math"),
    ],
)  # fmt: skip
def test_graders_that_no_job_can_use(
    remote: httpx.Client, body: dict[str, Any], grader: dict[str, Any], code: str, word: str
) -> None:
    method = {"type": "reinforcement", "reinforcement": {"grader": grader}}
    refused = assert_problem(remote.post("/v1/fine_tuning/jobs", json=body | {"method": method}), 400, code)
    assert word in refused["detail"]
    assert refused["error"]["param"].startswith("method.reinforcement.grader")


def test_a_grader_and_a_verifier_are_one_too_many(make: Make) -> None:
    with pytest.raises(openai.BadRequestError) as twice:
        make({"verifier": "exact"}, method={"type": "reinforcement", "reinforcement": {"grader": GRADER}})
    assert twice.value.param == "s2d.verifier"


# --- sent again -----------------------------------------------------------------------------------------------------


def send(remote: httpx.Client, body: dict[str, Any], count: int, **headers: str) -> str:
    retries = {"x-stainless-retry-count": str(count)}
    answer = remote.post("/v1/fine_tuning/jobs", json=body, headers=retries | headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_a_request_that_is_sent_again_gives_the_first_job(remote: httpx.Client, body: dict[str, Any]) -> None:
    first = send(remote, body, 0)
    assert send(remote, body, 1) == send(remote, body, 2) == first
    second = send(remote, body, 0)
    assert second != first, "two equal requests are two wishes"
    assert send(remote, body, 1) == second
    assert send(remote, body | {"seed": 1}, 1) not in (first, second)
    assert len(remote.get("/v1/jobs").json()["data"]) == 3


def test_the_client_itself_sends_again_and_there_is_one_job(
    stock: openai.OpenAI, make: Make, remote: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first is lost after the job was made."""
    from s2d.errors import Unavailable

    created, calls = fine_tuning.create, []

    def lose_the_first(*args: Any, **how: Any) -> Any:
        made = created(*args, **how)
        calls.append(how["again"])
        if len(calls) == 1:
            raise Unavailable("lost")
        return made

    monkeypatch.setattr(fine_tuning, "create", lose_the_first)
    monkeypatch.setattr(stock, "max_retries", 2)
    job_id = make().id
    assert calls == [False, True]
    assert [job["id"] for job in remote.get("/v1/jobs").json()["data"]] == [job_id]


def test_all_at_the_same_moment_are_one_job(remote: httpx.Client, body: dict[str, Any]) -> None:
    """The first and seven repetitions, in whatever order they are served."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda count: send(remote, body, count), range(8)))
    assert len(set(made)) == 1
    assert len(remote.get("/v1/jobs").json()["data"]) == 1


def test_a_repetition_that_overtakes_is_found_by_the_first(
    remote: httpx.Client, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, made = threading.Event(), threading.Event()
    create, slow = plans.create, threading.local()

    def plan(*args: Any) -> Any:
        if not planned.is_set() and not hasattr(slow, "once"):
            planned.set()
            made.wait(10)
        return create(*args)

    monkeypatch.setattr(plans, "create", plan)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(send, remote, body, 0)
        assert planned.wait(10)
        again = send(remote, body, 1)
        made.set()
        assert first.result() == again
    assert send(remote, body, 0) != again


def test_a_repetition_long_after_is_a_new_wish(remote: httpx.Client, ctx: Context, body: dict[str, Any]) -> None:
    first = send(remote, body, 0)
    with ctx.db.begin() as session:
        for row in session.query(IdempotencyRow):
            row.created_at -= repeats.WINDOW_S + 1
    assert send(remote, body, 1) != first


def test_an_idempotency_key_gives_one_job(remote: httpx.Client, body: dict[str, Any]) -> None:
    first = send(remote, body, 0, **{"idempotency-key": "k"})
    assert send(remote, body, 0, **{"idempotency-key": "k"}) == first
    other = remote.post("/v1/fine_tuning/jobs", json=body | {"seed": 1}, headers={"idempotency-key": "k"})
    assert_problem(other, 409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("count", ["", "-1", "many", "\u00b2".encode("latin-1"), "9" * 5000])
def test_a_strange_retry_count_harms_nobody(remote: httpx.Client, body: dict[str, Any], count: str | bytes) -> None:
    headers: Any = {"x-stainless-retry-count": count}
    assert remote.post("/v1/fine_tuning/jobs", json=body, headers=headers).status_code == 200


# --- tenants, students ----------------------------------------------------------------------------------------------


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
