"""A job's events, as pages and as they happen, through a real server."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api_testing import assert_problem

from api.native import events as module
from s2d.events import NewEvent
from s2d.services.context import Context
from s2d.services.tails import BATCH
from s2d.store import jobs


@pytest.fixture
def claim(ctx: Context, job: dict[str, Any]) -> jobs.Claim:
    """Makes events 1 (queued) and 2 (running)."""
    with ctx.db.begin() as session:
        claim = jobs.claim(session, job["id"], "worker", 60)
    assert claim is not None
    return claim


def tell(ctx: Context, claim: jobs.Claim, *messages: str) -> None:
    told = [NewEvent(type="message", message=message, data={"n": 1}) for message in messages]
    with ctx.db.begin() as session:
        jobs.record(session, claim, {}, told)


def finish(ctx: Context, claim: jobs.Claim) -> None:
    with ctx.db.begin() as session:
        jobs.finish(session, claim, "succeeded")


def frames(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The server-sent events; a comment is one with the field "" only."""
    frame: dict[str, str] = {}
    for line in response.iter_lines():
        if line:
            name, _, value = line.partition(":")
            frame[name] = value.removeprefix(" ")
        else:
            yield frame
            frame = {}


def address(claim: jobs.Claim) -> str:
    return f"/v1/jobs/{claim.job_id}/events"


SSE = {"accept": "text/event-stream"}


def test_pages(remote: httpx.Client, ctx: Context, claim: jobs.Claim) -> None:
    tell(ctx, claim, "a", "b\nc")
    everything = remote.get(address(claim)).json()
    assert [event["seq"] for event in everything["data"]] == [1, 2, 3, 4]
    assert not everything["has_more"]
    page = remote.get(address(claim), params={"after": 1, "limit": 2}).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert page["data"] == everything["data"][1:3]
    event = everything["data"][3]
    assert (event["object"], event["type"], event["message"], event["data"]) == (
        "job.event",
        "message",
        "b\nc",
        {"n": 1},
    )
    assert remote.get(address(claim), params={"after": 3, "limit": 1}).json()["has_more"] is False


def test_a_stream_follows_the_job_to_its_end(remote: httpx.Client, ctx: Context, claim: jobs.Claim) -> None:
    with remote.stream("GET", address(claim), headers=SSE) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-request-id"]
        seen = frames(response)
        assert [next(seen)["id"], next(seen)["id"]] == ["1", "2"]
        tell(ctx, claim, "line one\nline two")
        third = next(seen)
        assert (third["id"], third["event"]) == ("3", "message")
        assert json.loads(third["data"])["message"] == "line one\nline two"
        tell(ctx, claim, "last words")
        finish(ctx, claim)
        rest = list(seen)
    assert [frame.get("id") for frame in rest] == ["4", "5", None]
    assert (rest[-1]["event"], json.loads(rest[-1]["data"])) == ("done", {"state": "succeeded"})
    paged = remote.get(address(claim)).json()["data"]
    assert [json.loads(frame["data"]) for frame in (third, *rest[:-1])] == paged[2:]


def test_a_stream_goes_on_where_it_broke_off(remote: httpx.Client, ctx: Context, claim: jobs.Claim) -> None:
    tell(ctx, claim, *"abcdef")
    finish(ctx, claim)
    for last in range(10):
        with remote.stream("GET", address(claim), headers=SSE | {"last-event-id": str(last)}) as response:
            ids = [frame.get("id") for frame in frames(response)]
        assert ids == [*map(str, range(last + 1, 10)), None]
    both = {"params": {"after": 2, "stream": "true"}, "headers": {"last-event-id": "8"}}
    assert [frame.get("id") for frame in frames(remote.get(address(claim), **both))] == ["9", None]
    by_query = remote.get(address(claim), params={"after": 8, "stream": "true"})
    assert [frame.get("id") for frame in frames(by_query)] == ["9", None]


def test_a_long_history_comes_whole(remote: httpx.Client, ctx: Context, claim: jobs.Claim) -> None:
    tell(ctx, claim, *map(str, range(2 * BATCH - 3)))
    finish(ctx, claim)
    ids = [frame.get("id") for frame in frames(remote.get(address(claim), headers=SSE))]
    assert ids == [*map(str, range(1, 2 * BATCH + 1)), None]


@pytest.mark.parametrize("last", ["-1", "x", "1.5", str(2**40)])
def test_bad_positions(remote: httpx.Client, claim: jobs.Claim, last: str) -> None:
    assert_problem(remote.get(address(claim), headers=SSE | {"last-event-id": last}), 400, "invalid_request")
    assert_problem(remote.get(address(claim), params={"after": last}), 400, "invalid_request")


def test_a_silent_stream_sends_comments(
    remote: httpx.Client, claim: jobs.Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_S", 0.1)
    with remote.stream("GET", address(claim), headers=SSE | {"last-event-id": "2"}) as response:
        seen = frames(response)
        assert [set(next(seen)) for _ in range(2)] == [{""}, {""}]


def test_a_stream_ends_when_the_client_leaves(
    remote: httpx.Client, claim: jobs.Claim, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    follow = module.follow

    async def watched(*args: Any) -> Any:
        try:
            async for frame in follow(*args):
                yield frame
        except (asyncio.CancelledError, GeneratorExit):
            ended.set()
            raise

    monkeypatch.setattr(module, "follow", watched)
    with remote.stream("GET", address(claim), headers=SSE) as response:
        # Kept in a name: a generator that is dropped closes the response.
        seen = frames(response)
        next(seen)
        assert not ended.is_set()
    assert ended.wait(5)


def test_many_open_streams_leave_room_for_others(remote: httpx.Client, ctx: Context, claim: jobs.Claim) -> None:
    """More streams than the thread pool has threads: a stream holds none while it waits."""
    limits = httpx.Limits(max_connections=None)
    with httpx.Client(base_url=remote.base_url, headers=remote.headers, limits=limits, trust_env=False) as many:
        open_streams = [many.stream("GET", address(claim), headers=SSE) for _ in range(60)]
        followed = [frames(stream.__enter__()) for stream in open_streams]
        assert [next(seen)["id"] for seen in followed] == ["1"] * 60
        began = time.monotonic()
        assert remote.get(f"/v1/jobs/{claim.job_id}").status_code == 200
        assert time.monotonic() - began < 5
        tell(ctx, claim, "to all")
        assert [[next(seen)["id"] for _ in range(2)] for seen in followed] == [["2", "3"]] * 60
        for stream in open_streams:
            stream.__exit__(None, None, None)
