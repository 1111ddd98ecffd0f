"""Logs with ids and without secrets, and spans that nest, go on and tell what failed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from s2d.embedded.environment import environment
from s2d.errors import Unavailable
from s2d.observe import ObserveSettings, bind, bound, current_traceparent, open_tracing, set_up, span
from s2d.observe.logs import _OURS, redacted
from s2d.observe.otel import Otel
from s2d.observe.trace import OFF
from s2d.runner import child
from s2d.settings import Settings

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
KEY = f"s2d-{'k' * 32}"


@pytest.fixture
def _own_logging() -> Iterator[None]:
    """What a test sets up ends with it."""
    root, set_here = logging.getLogger(), (*_OURS, "uvicorn.error", "uvicorn.access")
    before = root.handlers[:], root.level
    levels = {name: (logging.getLogger(name).level, logging.getLogger(name).propagate) for name in set_here}
    root.handlers.clear()
    yield
    logging.captureWarnings(False)
    root.handlers[:], root.level = before
    for name, (level, propagate) in levels.items():
        logging.getLogger(name).setLevel(level)
        logging.getLogger(name).propagate = propagate


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


# --- logs -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_own_logging")
def test_json_lines_carry_what_is_bound_and_what_always_holds(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ObserveSettings(log_format="json"), "stage", job_id="job_1", epoch=3)
    log = logging.getLogger("s2d.somewhere")
    with bind(stage="warmup"), bind(request_id="req_1"):
        log.info("two\nlines, %d", 2)
    log.debug("not at this level")
    logging.getLogger("httpx").info("nor a library's")
    try:
        raise ValueError("a reason")
    except ValueError:
        log.exception("it failed")
    first, second = lines(capsys)
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info",
        "logger": "s2d.somewhere",
        "message": "two\nlines, 2",
        "service": "stage",
        "job_id": "job_1",
        "epoch": 3,
        "stage": "warmup",
        "request_id": "req_1",
    }
    assert second["exception"].endswith("ValueError: a reason")
    assert "stage" not in second


@pytest.mark.usefixtures("_own_logging")
def test_text_lines_end_with_the_ids(capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ObserveSettings(log_level="WARNING"), "api")
    with bind(request_id="req_1"):
        logging.getLogger("s2d").info("not at this level")
        logging.getLogger("s2d").warning("watch out")
    logging.getLogger("s2d").warning("nothing bound")
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith("WARNING s2d: watch out [request_id=req_1]")
    assert second.endswith("WARNING s2d: nothing bound")


@pytest.mark.usefixtures("_own_logging")
@pytest.mark.parametrize("form", ["json", "text"])
def test_no_secret_reaches_a_line(form: Any, capsys: pytest.CaptureFixture[str]) -> None:
    set_up(ObserveSettings(log_format=form), "api")
    told = [
        f"Authorization: Bearer {KEY}",
        f"bearer abc.def-ghi and {KEY}.",
        "cannot reach postgresql+psycopg://s2d:hunter2@db:5432/s2d or redis://:hunter2@redis:6379/0",
    ]
    for one in told:
        logging.getLogger("s2d").warning("%s", one)
    try:
        raise RuntimeError(KEY)
    except RuntimeError:
        logging.getLogger("s2d").exception("it failed")
    written = capsys.readouterr().err
    assert KEY not in written
    assert "hunter2" not in written
    assert "abc.def-ghi" not in written
    assert "postgresql+psycopg://s2d:***@db:5432/s2d" in written
    assert redacted("job_1 of s2d-stage, http://127.0.0.1:8400/v1") == "job_1 of s2d-stage, http://127.0.0.1:8400/v1"


def test_a_thread_has_the_ids_only_in_a_copy_of_the_context() -> None:
    seen: list[Any] = []

    def look() -> None:
        seen.append(dict(bound()))

    with bind(job_id="job_1"):
        for target in (look, partial(copy_context().run, look)):
            thread = threading.Thread(target=target)
            thread.start()
            thread.join()
    assert seen == [{}, {"job_id": "job_1"}]
    assert not bound()


def test_uvicorn_logs_as_we_do_and_has_no_access_log_beside_ours(tmp_path: Path) -> None:
    """As `s2d up` and the image start it: uvicorn sets its own logging up first."""
    code = (
        "import logging, uvicorn; uvicorn.Config('api.app:create_app', factory=True).load(); "
        "logging.getLogger('uvicorn.error').info('started'); "
        "print(logging.getLogger('uvicorn.access').hasHandlers())"
    )
    environ = os.environ | {"S2D_LOG_FORMAT": "json", "S2D_STATE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ)
    assert done.stdout.strip() == "False"
    (line,) = done.stderr.splitlines()
    assert json.loads(line)["message"] == "started"


def test_celery_leaves_logging_to_us(tmp_path: Path) -> None:
    code = (
        "import logging; from worker.celery_app import app; app.log.setup(); "
        "logging.getLogger('celery.worker').info('connected'); print('a print stays a print')"
    )
    given = {"S2D_LOG_FORMAT": "json", "S2D_STATE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ | given
    )
    assert json.loads(done.stderr)["service"] == "worker"
    assert done.stdout == "a print stays a print\n"


# --- traces ---------------------------------------------------------------------------------------------------------


def test_without_an_endpoint_nothing_is_imported_and_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert open_tracing(ObserveSettings(), "s2d-api") is OFF
    assert open_tracing(ObserveSettings(otlp_endpoint=""), "s2d-api") is OFF
    with span("work", attributes={"a": 1}) as one:
        one.set({"b": 2})
        assert current_traceparent() is None
    code = "import sys, api.app, worker.supervisor, s2d.stages.__main__; api.app.create_app(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("opentelemetry.sdk")]


def test_traces_without_the_extra_are_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "s2d.observe.otel")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(Unavailable, match=r"pip install 's2d\[otel\]'"):
        open_tracing(ObserveSettings(otlp_endpoint="http://127.0.0.1:4318"), "s2d-api")


def test_the_standard_variable_does_too_and_ours_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://standard:4318")
    assert Settings().otlp_endpoint == "http://standard:4318"
    assert environment(Settings())["S2D_OTLP_ENDPOINT"] == "http://standard:4318"
    monkeypatch.setenv("S2D_OTLP_ENDPOINT", "http://ours:4318")
    assert Settings().otlp_endpoint == "http://ours:4318"


def test_spans_nest_continue_a_trace_and_say_when_they_failed() -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    kept = InMemorySpanExporter()
    tracing = Otel(SimpleSpanProcessor(kept), "s2d-test")

    @span("decorated", kind="producer")
    def work() -> str | None:
        return current_traceparent()

    with tracing.span("root", parent=CALLER) as root:
        traceparent = work()
        with pytest.raises(KeyError), span("broken"):
            raise KeyError(KEY)
        with pytest.raises(KeyError), span("stopped", expected=(KeyError,)):
            raise KeyError
        root.rename("renamed")
    with tracing.span("malformed", parent="00-nonsense"):
        pass
    assert current_traceparent() is None
    decorated, broken, stopped, renamed, malformed = kept.get_finished_spans()
    assert f"{renamed.context.trace_id:032x}" == CALLER.split("-")[1]
    assert {one.parent.span_id for one in (decorated, broken, stopped)} == {renamed.context.span_id}
    assert traceparent == f"00-{renamed.context.trace_id:032x}-{decorated.context.span_id:016x}-01"
    assert len(traceparent) == 55
    assert [one.status.is_ok for one in (decorated, broken, stopped, renamed)] == [True, False, True, True]
    assert KEY not in str(broken.status.description)
    assert (malformed.parent, malformed.context.trace_id != renamed.context.trace_id) == (None, True)


@pytest.mark.usefixtures("_own_logging")
def test_a_log_line_names_the_trace(capsys: pytest.CaptureFixture[str]) -> None:
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    set_up(ObserveSettings(log_format="json"), "api")
    with Otel(SimpleSpanProcessor(InMemorySpanExporter()), "s2d-test").span("root", parent=CALLER):
        logging.getLogger("s2d").info("here")
    (line,) = lines(capsys)
    assert line["trace_id"] == CALLER.split("-")[1]
    assert len(line["span_id"]) == 16


def test_a_stage_is_given_the_trace_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_DATABASE_URL", "postgresql+psycopg://s2d:hunter2@db/s2d")
    monkeypatch.setenv("S2D_LOG_FORMAT", "json")
    given = child.environment(1, None, 30)
    assert {name for name in given if name.startswith("S2D_")} == {"S2D_LOG_FORMAT"}
    assert "TRACEPARENT" not in given
