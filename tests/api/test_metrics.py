"""GET /metrics: what is counted, what is read from the database, and that docs/observability.md says it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_testing import PLAN, assert_problem
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text, update
from starlette.middleware import Middleware
from starlette.responses import StreamingResponse
from store_testing import filled, new_job

from api import metrics as module
from api.app import create_app
from api.metrics import Metrics
from api.observe import Observe
from s2d.events import NewEvent
from s2d.observe import OFF
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import events, figures, jobs, students
from s2d.store.database import Database, db_now
from s2d.store.states import STATES
from s2d.store.tables import JobRow

DOCS = Path(__file__).resolve().parents[2] / "docs" / "observability.md"


def families(client: TestClient) -> dict[str, Metric]:
    """By the name that the scraper sees."""
    answer = client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return parsed(answer.text)


def parsed(told: str) -> dict[str, Metric]:
    found = text_string_to_metric_families(told)
    return {f"{one.name}_total" if one.type == "counter" else one.name: one for one in found}


def value(client: TestClient, name: str, **labels: str) -> float | None:
    """Of a sample that a counter, a gauge or a histogram's `_count` has."""
    samples = [sample for family in families(client).values() for sample in family.samples]
    return next((one.value for one in samples if one.name == name and one.labels == labels), None)


# --- what is counted --------------------------------------------------------------------------------------------------


def test_requests_are_counted_by_template_and_never_by_address(client: TestClient) -> None:
    for path in ("/v1/jobs/job_1", "/v1/jobs/job_2", "/v1/jobs", "/v1/nowhere/job_3", "/v1/models/job_4"):
        client.get(path)
    client.delete("/v1/jobs/job_5")
    client.request("BREW", "/v1/jobs/job_6")
    client.get("/v1/jobs/job_7", headers={"authorization": "Bearer no"})
    counted = {
        (one.labels["method"], one.labels["route"], one.labels["status"]): one.value
        for one in families(client)["s2d_http_requests_total"].samples
    }
    assert counted[("GET", "/v1/jobs/{job_id}", "4xx")] == 2
    assert counted[("GET", "/v1/jobs", "2xx")] == 1
    assert counted[("GET", "none", "4xx")] == 2
    assert counted[("DELETE", "/v1/jobs/{job_id}", "4xx")] == 1
    assert ("other", "/v1/jobs/{job_id}", "4xx") in counted
    assert not re.search(r"job_\d", client.get("/metrics").text)
    assert value(client, "s2d_http_request_duration_seconds_count", method="GET", route="/v1/jobs/{job_id}") == 2


def test_errors_of_ours_are_counted_as_the_client_sees_them(app: FastAPI, client: TestClient) -> None:
    def broken() -> None:
        raise RuntimeError

    app.add_api_route("/broken", broken, tags=["test"])
    assert client.get("/broken").status_code == 500
    assert value(client, "s2d_http_requests_total", method="GET", route="/broken", status="5xx") == 1
    assert value(client, "s2d_http_requests_in_flight") == 1, "the scrape itself"


def test_two_apps_in_one_process_count_apart(client: TestClient, tmp_path: Path) -> None:
    client.get("/v1/jobs")
    settings = Settings(state_dir=tmp_path / "other")
    with TestClient(create_app(settings)) as other:
        other.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        assert value(other, "s2d_http_requests_total", method="GET", route="/v1/jobs", status="2xx") is None
    assert value(client, "s2d_http_requests_total", method="GET", route="/v1/jobs", status="2xx") == 1


def test_it_needs_a_key_and_is_no_part_of_the_interface(app: FastAPI, client: TestClient) -> None:
    assert "/metrics" not in app.openapi()["paths"]
    del client.headers["authorization"]
    assert_problem(client.get("/metrics"), 401)


@pytest.fixture
def inference() -> Iterator[tuple[TestClient, Metrics]]:
    """An app whose student takes its time, in place of a real one."""
    metrics = Metrics()
    app = FastAPI(middleware=[Middleware(Observe, metrics=metrics)])
    app.state.tracing = OFF

    async def tokens() -> AsyncIterator[bytes]:
        yield b""
        await asyncio.sleep(0.05)
        yield b"data: one\n\n"
        await asyncio.sleep(1.5)
        yield b"data: two\n\n"

    @app.post("/v1/chat/completions")
    async def chat(stream: bool) -> Any:
        return StreamingResponse(tokens(), media_type="text/event-stream") if stream else {"answer": 42}

    with TestClient(app) as client:
        yield client, metrics


def test_first_bytes_of_students(inference: tuple[TestClient, Metrics]) -> None:
    """Of a stream it is the first token's, not the head's, and not the last token's."""
    client, metrics = inference
    for how in ("true", "false"):
        client.post("/v1/chat/completions", params={"stream": how})
    client.post("/v1/chat/completions")
    labels = {"route": "/v1/chat/completions", "streamed": "true"}
    get = metrics.registry.get_sample_value
    assert 0.05 <= (get("s2d_inference_first_byte_seconds_sum", labels) or 0) < 1.5
    whole = {"method": "POST", "route": "/v1/chat/completions"}
    assert (get("s2d_http_request_duration_seconds_sum", whole) or 0) >= 1.55
    assert get("s2d_inference_first_byte_seconds_count", labels | {"streamed": "false"}) == 1, "a refusal is no answer"
    assert get("s2d_inference_requests_total", labels | {"status": "2xx"}) == 1
    assert get("s2d_inference_requests_total", labels | {"streamed": "false", "status": "4xx"}) == 1


# --- what is read -----------------------------------------------------------------------------------------------------


def test_a_job_is_seen_in_its_state(client: TestClient, ctx: Context, job: dict[str, Any]) -> None:
    assert value(client, "s2d_jobs", state="queued") == 1
    assert value(client, "s2d_outbox_unsent") == 1
    assert value(client, "s2d_database_up") == 1
    with ctx.db.begin() as session:
        jobs.claim(session, job["id"], "worker", 60)
        students.register(session, student_id="student-1", job_id=job["id"], path="/nowhere")
    assert [value(client, "s2d_jobs", state=state) for state in STATES] == [float(one == "running") for one in STATES]
    assert value(client, "s2d_students") == 1


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with filled(database_url) as database:
        yield database


def read(db: Database) -> figures.Figures:
    with db.read() as session:
        return figures.read(session)


def test_figures_of_an_empty_database(db: Database) -> None:
    assert read(db) == figures.Figures(dict.fromkeys(STATES, 0), 0.0, 0, 0, 0)


def test_the_age_counts_from_when_the_job_was_queued_last(db: Database) -> None:
    """Not from its creation: one that was paused for a day has not waited for a day."""
    job = new_job(db)
    with db.begin() as session:
        # All that has happened so far was a day ago.
        day_ago = {"created_at": db_now() - 86_400}
        session.execute(update(JobRow).values(**day_ago))
        session.execute(text("UPDATE events SET created_at = created_at - 86400"))
    assert read(db).oldest_queued_s == pytest.approx(86_400, abs=60)
    with db.begin() as session:
        jobs.request_pause(session, job)
    assert read(db).oldest_queued_s == 0
    with db.begin() as session:
        jobs.request_resume(session, job)
    assert read(db).oldest_queued_s < 60


def test_a_lost_job_shows_until_it_is_queued_again_and_then_waits_its_time(db: Database) -> None:
    job = new_job(db)
    with db.begin() as session:
        claim = jobs.claim(session, job, "worker", lease_s=-1)
        assert claim is not None
        events.append(session, job, claim.epoch, [NewEvent(type="message")])
    assert (read(db).leases_expired, read(db).jobs["running"]) == (1, 1)
    with db.begin() as session:
        jobs.requeue_lost(session, max_attempts=5, backoff_s=100)
    seen = read(db)
    assert (seen.leases_expired, seen.jobs["queued"]) == (0, 1)
    # The first message of the job was never sent, but nobody should send it before its time has come.
    assert (seen.outbox_unsent, seen.oldest_queued_s) == (0, 0)


# --- when the database fails ------------------------------------------------------------------------------------------


def only_process(client: TestClient) -> None:
    found = families(client)
    assert found["s2d_database_up"].samples[0].value == 0
    assert "s2d_http_requests_total" in found
    assert "s2d_jobs" not in found


def test_a_database_that_fails_costs_only_its_own_figures(client: TestClient, ctx: Context) -> None:
    client.get("/v1/jobs")
    with ctx.db.begin() as session:
        session.execute(text("DROP TABLE outbox"))
    only_process(client)


def test_a_database_that_hangs_is_not_waited_for_nor_asked_twice(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered, asked = threading.Event(), []
    real: Callable[[Context], Any] = module.service_figures

    def hanging(ctx: Context) -> Any:
        asked.append(ctx)
        answered.wait(20)
        return real(ctx)

    monkeypatch.setattr(module, "service_figures", hanging)
    monkeypatch.setattr(module, "DATABASE_TIMEOUT_S", 0.1)
    for _ in range(3):
        only_process(client)
    assert len(asked) == 1
    answered.set()
    monkeypatch.setattr(module, "DATABASE_TIMEOUT_S", 20)
    assert value(client, "s2d_database_up") == 1


# --- the table --------------------------------------------------------------------------------------------------------


def documented() -> dict[str, tuple[str, set[str]]]:
    """Metric -> its type and labels."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| [^|]+ \|$", DOCS.read_text(), re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_table_of_metrics_is_what_there_is(app: FastAPI, client: TestClient) -> None:
    client.post("/v1/plans", json=PLAN)
    # As a student's answer is counted, without a student.
    app.state.metrics.ended("POST", "/v1/chat/completions", 200, 1.0, streamed=True, first_byte_s=0.1)
    given = {
        name: (one.type, set().union(*(sample.labels for sample in one.samples)) - {"le"})
        for name, one in families(client).items()
    }
    assert documented() == given


def test_labels_have_only_the_documented_values() -> None:
    labels = {label for _, names in documented().values() for label in names}
    explained = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", DOCS.read_text(), re.MULTILINE))
    assert labels - {"version"} == explained
    assert not labels & {"job", "job_id", "key", "key_id", "tenant", "path", "student", "model", "request_id"}


def test_the_alerts_ask_for_metrics_that_exist() -> None:
    alerts = DOCS.read_text().split("| alert |")[1].split("\n## ")[0]
    asked = {re.sub("_bucket$", "", name) for name in re.findall(r"\bs2d_\w+", alerts)}
    assert len(asked) > 5
    assert asked <= set(documented())
