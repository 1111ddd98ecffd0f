"""A request that is sent again because its answer was lost makes no second job."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import openai
import pytest
from api_testing import assert_problem
from fine_tuning_testing import Make

from s2d.services import fine_tuning, plans
from s2d.services.context import Context
from s2d.store import repeats
from s2d.store.tables import IdempotencyRow


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
