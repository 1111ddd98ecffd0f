"""Jobs over HTTP; the test plays the worker, through the same store functions."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from api_testing import PLAN, assert_problem, jsonl
from fastapi.testclient import TestClient

from s2d.errors import FAILURE_CODES
from s2d.plan.graph import Account
from s2d.services.context import Context
from s2d.services.progress import EtaRange, Progress, StageProgress, StageState
from s2d.store import jobs, ledger, students
from s2d.store.states import JobState

Job = dict[str, Any]
STAGES: dict[str, StageState] = {"teacher_rl": "succeeded", "warmup": "running", "opd": "pending"}


def claimed(ctx: Context, job: Job) -> jobs.Claim:
    with ctx.db.begin() as session:
        claim = jobs.claim(session, job["id"], "worker", 60)
    assert claim is not None
    return claim


def finished(ctx: Context, job: Job, state: JobState, **how: Any) -> None:
    claim = claimed(ctx, job)
    with ctx.db.begin() as session:
        jobs.finish(session, claim, state, **how)


def test_the_ledger_tells_who_has_spent_the_labels(client: TestClient, ctx: Context, job: Job) -> None:
    claim = claimed(ctx, job)
    with ctx.db.begin() as session:
        ledger.spend(session, claim, Account("workflow", "teacher_rl"), "teacher_rl", ["a", "b"])
        ledger.spend(session, claim, Account("direct_grpo", "direct_grpo"), "teacher_rl", ["a"])
    assert client.get(f"/v1/jobs/{job['id']}/labels").json()["data"] == [
        {"arm": "direct_grpo", "stage": "direct_grpo", "role": "teacher_rl", "labels": 1},
        {"arm": "workflow", "stage": "teacher_rl", "role": "teacher_rl", "labels": 2},
    ]
    assert_problem(client.get("/v1/jobs/job_unknown/labels"), 404, "job_not_found")


def test_a_job_is_queued(client: TestClient, job_body: dict[str, str]) -> None:
    made = client.post("/v1/jobs", json=job_body | {"name": "first try"})
    assert made.status_code == 202
    job = made.json()
    assert made.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["state"], job["name"], job["attempt"]) == ("job", "queued", "first try", 0)
    assert (job["plan"], job["training_file"]) == (job_body["plan"], job_body["training_file"])
    empty = ("started_at", "finished_at", "current_stage", "eta_s", "student", "error")
    assert [job[name] for name in empty] == [None] * len(empty)
    assert client.get(made.headers["location"]).json() == job


def test_a_running_job_says_how_far_it_is(client: TestClient, ctx: Context, job: Job) -> None:
    progress = Progress(
        stage="warmup",
        step=3,
        steps=40,
        metrics={"loss": 0.25, "kl": None},
        eta_s=EtaRange(low=60, high=90),
        stages=(StageProgress(kind="teacher_rl", state="succeeded", steps=10, seconds=4.5, tokens=1000),),
    )
    claim = claimed(ctx, job)
    with ctx.db.begin() as session:
        jobs.record(session, claim, progress.model_dump(mode="json"), [])
    now = client.get(f"/v1/jobs/{job['id']}").json()
    assert (now["state"], now["attempt"], now["current_stage"]) == ("running", 1, "warmup")
    assert (now["step"], now["steps"], now["metrics"]) == (3, 40, {"loss": 0.25, "kl": None})
    assert now["eta_s"] == {"low": 60, "high": 90}
    assert now["stages"][0]["kind"] == "teacher_rl"
    assert now["started_at"] >= now["created_at"]


def test_a_finished_job_names_its_student_or_the_reason(
    client: TestClient, ctx: Context, job: Job, job_body: dict[str, str]
) -> None:
    finished(ctx, job, "succeeded", student_id="student-1")
    done = client.get(f"/v1/jobs/{job['id']}").json()
    assert (done["state"], done["student"], done["error"]) == ("succeeded", "student-1", None)
    assert done["finished_at"] >= done["started_at"]
    other = client.post("/v1/jobs", json=job_body).json()
    finished(ctx, other, "failed", error={"code": "gate_c1", "message": "no gain", "stage": "teacher_rl", "step": 9})
    error = client.get(f"/v1/jobs/{other['id']}").json()["error"]
    assert error == {
        "code": "gate_c1",
        "message": "no gain",
        "stage": "teacher_rl",
        "step": 9,
        "advice": FAILURE_CODES["gate_c1"],
        "log": [],
    }
    by_state = client.get("/v1/jobs", params={"state": "failed"}).json()["data"]
    assert [item["id"] for item in by_state] == [other["id"]]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_no_stage_of_an_ended_job_runs_on(client: TestClient, ctx: Context, job: Job, state: JobState) -> None:
    """A worker that was lost cannot say so itself."""
    stages = tuple(StageProgress(kind=kind, state=state) for kind, state in STAGES.items())
    progress = Progress(stage="warmup", eta_s=EtaRange(low=1, high=2), stages=stages)
    claim = claimed(ctx, job)
    with ctx.db.begin() as session:
        jobs.record(session, claim, progress.model_dump(mode="json"), [])
        if state == "cancelled":
            jobs.request_cancel(session, job["id"])
        jobs.finish(session, claim, state)
    seen = client.get(f"/v1/jobs/{job['id']}").json()
    assert [stage["state"] for stage in seen["stages"]] == ["succeeded", state, "skipped"]
    assert seen["stages"][1]["finished_at"] == seen["finished_at"]
    assert (seen["current_stage"], seen["eta_s"]) == ("warmup", None)


def test_pages(client: TestClient, job_body: dict[str, str]) -> None:
    ids = [client.post("/v1/jobs", json=job_body).json()["id"] for _ in range(3)]
    first = client.get("/v1/jobs", params={"limit": 2}).json()
    assert [item["id"] for item in first["data"]] == ids[:0:-1]
    rest = client.get("/v1/jobs", params={"limit": 2, "after": first["last_id"]}).json()
    assert ([item["id"] for item in rest["data"]], rest["has_more"]) == (ids[:1], False)


def test_a_job_needs_a_plan_and_its_file(
    client: TestClient, job_body: dict[str, str], upload: Callable[..., httpx.Response]
) -> None:
    no_plan = client.post("/v1/jobs", json=job_body | {"plan": "plan_0"})
    assert assert_problem(no_plan, 404, "plan_not_found")["error"]["param"] == "plan"
    no_file = client.post("/v1/jobs", json=job_body | {"training_file": "file_0"})
    assert assert_problem(no_file, 404, "file_not_found")["error"]["param"] == "training_file"
    other = upload(jsonl(101)).json()["id"]
    mismatch = client.post("/v1/jobs", json=job_body | {"training_file": other})
    assert_problem(mismatch, 400, "plan_file_mismatch")
    budget = client.post("/v1/plans", json=PLAN | {"labeled_budget": 200}).json()["id"]
    too_few = client.post("/v1/jobs", json={"plan": budget, "training_file": other})
    assert_problem(too_few, 400, "invalid_plan")
    unknown = client.post("/v1/jobs", json=job_body | {"gpu": 1})
    assert assert_problem(unknown, 400)["error"]["param"] == "gpu"
    assert client.get("/v1/jobs").json()["data"] == []


def test_an_idempotency_key_gives_one_job(client: TestClient, job_body: dict[str, str]) -> None:
    key = {"idempotency-key": "k-1"}
    first = client.post("/v1/jobs", json=job_body, headers=key).json()
    assert client.post("/v1/jobs", json=job_body, headers=key).json() == first
    other = client.post("/v1/jobs", json=job_body | {"name": "other"}, headers=key)
    assert_problem(other, 409, "idempotency_key_reused")
    assert other.headers["x-should-retry"] == "false"
    assert client.post("/v1/jobs", json=job_body).json()["id"] != first["id"]
    assert_problem(client.post("/v1/jobs", json=job_body, headers={"idempotency-key": "k" * 256}), 400)
    assert len(client.get("/v1/jobs").json()["data"]) == 2


def test_one_job_for_one_key_at_the_same_moment(remote: httpx.Client, client: TestClient, job_body: Job) -> None:
    def create(_: int) -> httpx.Response:
        return remote.post("/v1/jobs", json=job_body, headers={"idempotency-key": "k"})

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(create, range(8)))
    assert [response.status_code for response in made] == [202] * 8
    assert len({response.json()["id"] for response in made}) == 1
    assert len(client.get("/v1/jobs").json()["data"]) == 1


def test_cancel_while_queued(client: TestClient, ctx: Context, job: Job) -> None:
    cancelled = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert cancelled.json()["finished_at"] is not None
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    with ctx.db.begin() as session:
        assert jobs.claim(session, job["id"], "worker", 60) is None


def test_cancel_while_running(client: TestClient, ctx: Context, job: Job) -> None:
    claim = claimed(ctx, job)
    for _ in range(2):
        assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelling"
    with ctx.db.begin() as session:
        jobs.finish(session, claim, "succeeded")
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_job_that_has_ended_is_not_cancelled(client: TestClient, ctx: Context, job: Job, state: JobState) -> None:
    finished(ctx, job, state)
    response = client.post(f"/v1/jobs/{job['id']}/cancel")
    assert_problem(response, 409, "job_finished")
    assert response.headers["x-should-retry"] == "false"
    assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == state


def test_the_report(client: TestClient, ctx: Context, job: Job) -> None:
    address = f"/v1/jobs/{job['id']}/report"
    assert_problem(client.get(address), 404, "report_not_ready")
    folder = ctx.settings.job_dir(job["id"]) / "report"
    folder.mkdir(parents=True)
    for name, content in (("report.json", b'{"a":1}'), ("report.md", "# Märk".encode()), ("curves.png", b"\x89PNG")):
        (folder / name).write_bytes(content)
    (folder.parent / "secret.png").write_bytes(b"secret")
    assert client.get(address).json() == {"a": 1}
    for page in (
        client.get(address, params={"format": "markdown"}),
        client.get(address, headers={"accept": "text/markdown"}),
    ):
        assert (page.text, page.headers["content-type"]) == ("# Märk", "text/markdown; charset=utf-8")
    picture = client.get(f"{address}/curves.png")
    assert (picture.content, picture.headers["content-type"]) == (b"\x89PNG", "image/png")
    assert_problem(client.get(f"{address}/other.png"), 404, "report_not_ready")
    for escape in ("..%2Fsecret.png", "..%5Csecret.png", "%2E%2E/secret.png", "..secret.png", "%00.png"):
        assert client.get(f"{address}/{escape}").status_code in (400, 404)


def test_models_are_the_students(client: TestClient, ctx: Context, job: Job) -> None:
    assert client.get("/v1/models").json() == {"object": "list", "data": []}
    with ctx.db.begin() as session:
        students.register(session, student_id="team/student", job_id=job["id"], path="/nowhere")
    listed = client.get("/v1/models").json()["data"]
    assert listed == [client.get("/v1/models/team%2Fstudent").json()] == [client.get("/v1/models/team/student").json()]
    assert listed[0] | {"created": 0} == {
        "id": "team/student",
        "object": "model",
        "created": 0,
        "owned_by": "s2d",
        "job": job["id"],
        "arm": "workflow",
    }
