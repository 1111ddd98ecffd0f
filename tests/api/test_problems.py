"""Every failure has the one error shape and a request id."""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from api_testing import PLAN, assert_problem, every_operation
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.exc import OperationalError

from api import problems
from s2d.errors import Unavailable
from s2d.settings import Settings

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(
    [*PLAN, *("labeled_budget", "training_file", "seed", "verifier", "labels", "stages", "plan", "name")]
) | st.sampled_from(["model", "messages", "n", "stream", "stop", "max_tokens"])
SLOW = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@SLOW
@given(data=st.data())
def test_no_body_makes_anything_but_a_problem(client: TestClient, data: st.DataObject) -> None:
    path, base = data.draw(
        st.sampled_from([("/v1/plans", PLAN), ("/v1/jobs", {}), ("/v1/chat/completions", {"model": "none"})])
    )
    body = data.draw(ANYTHING | st.dictionaries(FIELDS, ANYTHING, min_size=1, max_size=4).map(lambda d: {**base, **d}))
    # Python writes NaN and Infinity, as careless clients do, and reads them, as FastAPI does.
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    if response.status_code == 201:
        return
    assert response.status_code in (400, 404), (body, response.text)
    assert_problem(response, response.status_code)


@SLOW
@given(data=st.data())
def test_no_address_makes_anything_but_an_answer_or_a_problem(
    app: FastAPI, client: TestClient, data: st.DataObject
) -> None:
    method, path = data.draw(st.sampled_from([op for op in every_operation(app) if op[0] != "POST"]))
    name = data.draw(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
    path = path.replace("/x", "/" + quote(name, safe=""))
    query = data.draw(
        st.dictionaries(st.sampled_from(["after", "limit", "order", "state", "format", "stream"]), st.text(max_size=9))
    )
    response = client.request(method, path, params=query)
    if response.status_code != 200:
        assert response.status_code in (400, 404, 405), response.text
        assert_problem(response, response.status_code)


def test_control_characters_in_ids_never_reach_the_database(client: TestClient) -> None:
    """PostgreSQL refuses a NUL with an error that is ours."""
    for path in ("/v1/files/a%00b", "/v1/jobs/a%00b/events", "/v1/models/a%00b"):
        assert_problem(client.get(path), 400, "invalid_request")
    assert_problem(client.get("/v1/files", params={"after": "a\x00b"}), 400)
    body = assert_problem(client.post("/v1/jobs", json={"plan": "a\x00", "training_file": "b"}), 400)
    assert body["error"]["param"] == "plan"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/nothing", 404, "route_not_found"),
        ("GET", "/v1/files/", 404, None),
        ("GET", "/docs", 404, "route_not_found"),
        ("DELETE", "/v1/plans", 405, "method_not_allowed"),
        ("PUT", "/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/v1/files/file_0", 404, "file_not_found"),
        ("GET", "/v1/files/file_0/content", 404, "file_not_found"),
        ("DELETE", "/v1/files/file_0", 404, "file_not_found"),
        ("GET", "/v1/plans/plan_0", 404, "plan_not_found"),
        ("GET", "/v1/jobs/job_0", 404, "job_not_found"),
        ("GET", "/v1/jobs/job_0/events", 404, "job_not_found"),
        ("GET", "/v1/jobs/job_0/events?stream=true", 404, "job_not_found"),
        ("GET", "/v1/jobs/job_0/report", 404, "job_not_found"),
        ("POST", "/v1/jobs/job_0/cancel", 404, "job_not_found"),
        ("GET", "/v1/models/no/such", 404, "model_not_found"),
        ("GET", "/v1/jobs?after=job_0", 400, "invalid_cursor"),
        ("GET", "/v1/jobs?limit=0", 400, "invalid_request"),
        ("GET", "/v1/jobs?state=lost", 400, "invalid_request"),
        ("GET", "/v1/plans/plan_0?format=pdf", 400, "invalid_request"),
    ],
)
def test_what_is_not_there(client: TestClient, method: str, path: str, status: int, code: str | None) -> None:
    response = client.request(method, path)
    assert_problem(response, status, code)
    if status == 405:
        assert response.headers["allow"]


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/jobs", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"{", "application/json"),
        (b"", "application/json"),
        (b'"\xff"', "application/json"),
        (b"[" * 9_000, "application/json"),
        (b"{}", "text/plain"),
        (b"[]", "application/json"),
        (b'{"a": 1}', "application/json"),
    ],
)
def test_bodies_that_cannot_be_read(client: TestClient, path: str, body: bytes, content_type: str) -> None:
    response = client.post(path, content=body, headers={"content-type": content_type})
    assert_problem(response, 400, "invalid_request")


def test_a_wrong_field_is_named(client: TestClient) -> None:
    response = client.post("/v1/plans", json=PLAN | {"labeled_budget": 10, "hardware": {"devices": "many"}})
    body = assert_problem(response, 400)
    assert body["error"]["param"] == "hardware.devices"
    assert "hardware.devices" in body["detail"]
    unknown = client.post("/v1/plans", json=PLAN | {"labelled_budget": 10, "labeled_budget": 10})
    assert assert_problem(unknown, 400)["error"]["param"] == "labelled_budget"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e999"])
@pytest.mark.parametrize("field", ["memory_gib", "tflops", "bandwidth_gbs"])
def test_numbers_that_are_none(client: TestClient, number: str, field: str) -> None:
    request = json.dumps(PLAN | {"labeled_budget": 1000, "hardware": PLAN["hardware"] | {field: 0.5}})
    body = request.replace("0.5", number)
    response = client.post("/v1/plans", content=body, headers={"content-type": "application/json"})
    assert assert_problem(response, 400)["error"]["param"] == f"hardware.{field}"


def test_request_ids(client: TestClient) -> None:
    made = {client.get("/healthz").headers["x-request-id"] for _ in range(3)}
    assert len(made) == 3
    assert client.get("/healthz", headers={"x-request-id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for insane in ("", "a b", "a" * 129, "a;b", "é".encode()):
        echoed = client.get("/healthz", headers={"x-request-id": insane}).headers["x-request-id"]
        assert set(echoed) <= set(string.ascii_lowercase + string.digits + "_")


@pytest.mark.parametrize("path", ["/v1/plans", "/v1/jobs", "/v1/chat/completions", "/v1/nothing"])
@pytest.mark.parametrize("streamed", [False, True])
def test_large_bodies(client: TestClient, settings: Settings, path: str, streamed: bool) -> None:
    body = json.dumps({"teacher": "x" * settings.max_body_bytes}).encode()

    def parts() -> Iterator[bytes]:
        for start in range(0, len(body), 1000):
            yield body[start : start + 1000]

    content: Any = parts() if streamed else body
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    # A path that is not there reads no body, so that one without a declared length is a plain 404.
    if path == "/v1/nothing" and streamed:
        assert_problem(response, 404)
    else:
        assert_problem(response, 413, "too_large")


@pytest.fixture
def break_with(app: FastAPI) -> Callable[[Exception], None]:
    def add(error: Exception) -> None:
        def broken() -> None:
            raise error

        app.add_api_route("/broken", broken, tags=["test"])

    return add


def test_unforeseen_errors_say_nothing_of_the_inside(
    client: TestClient, break_with: Callable[[Exception], None], caplog: pytest.LogCaptureFixture
) -> None:
    break_with(RuntimeError("the password is hunter2"))
    response = client.get("/broken", headers={"x-request-id": "find-me"})
    assert_problem(response, 500, "internal_error")
    assert "hunter2" not in response.text
    assert "Traceback" not in response.text
    logged = [record for record in caplog.records if record.name == problems.__name__]
    assert "find-me" in logged[0].getMessage()
    assert logged[0].exc_info is not None


def test_what_may_be_tried_again_says_when(client: TestClient, break_with: Callable[[Exception], None]) -> None:
    busy = Unavailable("busy")
    busy.retry_after_s = 17
    break_with(busy)
    response = client.get("/broken")
    assert_problem(response, 503, "unavailable")
    assert response.headers["retry-after"] == "17"


def test_a_database_that_is_away(client: TestClient, break_with: Callable[[Exception], None]) -> None:
    break_with(OperationalError("SELECT secret", {}, Exception("connection refused")))
    response = client.get("/broken")
    assert_problem(response, 503, "database_unavailable")
    assert "secret" not in response.text
    assert int(response.headers["retry-after"]) > 0
