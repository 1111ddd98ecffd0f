"""One trace from the caller through the API and the worker into every stage's process, as a collector receives it.

The worker is its supervisor in this process, its stages are drills (`s2d.stages.drill`).
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from collector import Collector
from fastapi.testclient import TestClient
from sqlalchemy.exc import OperationalError
from tiny import DEMO, SHORT, labels

from api.app import create_app
from s2d.observe import bound, open_tracing
from s2d.runner.layout import JobLayout
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import jobs
from worker.supervisor import Supervisor

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DRILL = (sys.executable, "-m", "s2d.stages.drill")
STAGES = ("teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "direct_grpo", "evaluate")


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def start_job(client: TestClient, folder: Path) -> str:
    """Over HTTP, as a caller that has a trace of its own."""
    with labels(folder / "labels.jsonl").open("rb") as file:
        upload = client.post("/v1/files", files={"file": file}, data={"purpose": "fine-tune"}).json()["id"]
    pair = {"teacher": str(DEMO / "teacher"), "student": str(DEMO / "student"), "training_file": upload}
    planned = client.post("/v1/plans", json={**SHORT, **pair})
    assert planned.status_code == 201, planned.text
    plan = planned.json()["id"]
    headers = {"traceparent": CALLER, "x-request-id": "req_mine"}
    created = client.post("/v1/jobs", json={"plan": plan, "training_file": upload}, headers=headers)
    assert created.status_code == 202, created.text
    return str(created.json()["id"])


def test_one_trace_from_the_caller_through_api_and_worker_into_each_stage(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S2D_LOG_FORMAT", "json")
    monkeypatch.setenv("S2D_OTLP_ENDPOINT", collector.url)
    settings = Settings(state_dir=tmp_path / "state", model_roots=(DEMO,), stage_command=DRILL)
    app = create_app(settings)
    with TestClient(app) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        job = start_job(client, tmp_path)
        tracing = open_tracing(settings, "s2d-worker")
        assert Supervisor(app.state.context, "here", lambda: False, tracing).run(job) == "succeeded"
        tracing.close()

    trace_id, caller_id = CALLER.split("-")[1:3]
    (request,) = collector.named("POST /v1/jobs")
    (created,) = collector.named("create job")
    (run,) = collector.named("run job")
    assert (request.service, created.service, run.service) == ("s2d-api", "s2d-api", "s2d-worker")
    assert [request.parent_id, created.parent_id, run.parent_id] == [caller_id, request.span_id, created.span_id]
    assert request.attributes["http.response.status_code"] == 202
    assert request.attributes["s2d.request.id"] == "req_mine"
    assert run.attributes["s2d.job.id"] == job
    assert run.attributes["s2d.job.state"] == "succeeded"
    processes = {one.attributes["s2d.stage"]: one for one in collector.named("stage process")}
    assert set(processes) == set(STAGES)
    for name, process in processes.items():
        (stage,) = collector.named(f"stage {name}")
        assert (stage.service, process.service) == ("s2d-worker", "s2d-stage")
        assert (stage.parent_id, process.parent_id) == (run.span_id, stage.span_id)
        assert {stage.trace_id, process.trace_id, run.trace_id, request.trace_id} == {trace_id}
        assert process.attributes["process.exit.code"] == 0
    assert not any(one.failed for one in collector.spans)
    # Requests that came without a trace have their own.
    (upload,) = collector.named("POST /v1/files")
    assert upload.trace_id != trace_id
    assert not upload.parent_id


def test_a_failed_stage_says_so_in_its_log_and_its_span(
    collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log is JSON to its last line, with the job's ids, and the trace shows which stage it was."""
    monkeypatch.setenv("S2D_LOG_FORMAT", "json")
    monkeypatch.setenv("S2D_OTLP_ENDPOINT", collector.url)
    settings = Settings(state_dir=tmp_path / "state", model_roots=(DEMO,), stage_command=DRILL)
    app = create_app(settings)
    with TestClient(app) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        job = start_job(client, tmp_path)
        spoil(app.state.context, job)
        tracing = open_tracing(settings, "s2d-worker")
        assert Supervisor(app.state.context, "here", lambda: False, tracing).run(job) == "failed"
        tracing.close()
    assert sorted(one.name for one in collector.spans if one.failed) == ["run job", "stage process", "stage teacher_rl"]
    log = (JobLayout(settings.job_dir(job)).stage("teacher_rl") / "log-001.txt").read_text()
    last = json.loads(log.splitlines()[-1])
    assert (last["job_id"], last["epoch"], last["stage"]) == (job, 1, "teacher_rl")
    assert last["trace_id"] == CALLER.split("-")[1]
    assert "Traceback" in last["exception"]


class Seen(logging.Handler):
    """What was bound when each line was written, and by which thread."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[tuple[str, dict[str, Any]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.ids.append((str(record.threadName), dict(bound())))


def test_every_line_of_a_worker_tells_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the thread that renews the lease too, which the database keeps from doing so here."""

    def away(*_: object) -> None:
        raise OperationalError("UPDATE", {}, Exception("the database is away"))

    monkeypatch.setattr(jobs, "heartbeat", away)
    settings = Settings(state_dir=tmp_path / "state", model_roots=(DEMO,), stage_command=DRILL, lease_s=2.0)
    app, seen = create_app(settings), Seen()
    with TestClient(app) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        job = start_job(client, tmp_path)
        log = logging.getLogger("s2d.worker")
        log.addHandler(seen)
        try:
            assert Supervisor(app.state.context, "here", lambda: False).run(job) is None
        finally:
            log.removeHandler(seen)
    assert {thread for thread, _ in seen.ids} == {"MainThread", f"lease-{job}"}
    assert all((ids["job_id"], ids["epoch"]) == (job, 1) for _, ids in seen.ids)


def spoil(ctx: Context, job: str) -> None:
    """Put something where the first stage wants to save its checkpoints."""
    folder = JobLayout(ctx.settings.job_dir(job)).stage("teacher_rl")
    folder.mkdir(parents=True)
    (folder / "checkpoints").write_text("in the way")
