"""Polls that find nothing new cost no body, and a change that was meant for another state changes nothing."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from api_testing import Server, assert_problem
from fastapi.testclient import TestClient

from api.native import snapshots
from s2d.events import NewEvent
from s2d.services.context import Context
from s2d.store import jobs as store


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this test itself changed in the database shows at once."""
    monkeypatch.setattr(snapshots, "FRESH_S", 0.0)


def test_a_poll_that_finds_nothing_new_has_no_body(client: TestClient, ctx: Context, job: dict[str, Any]) -> None:
    url = f"/v1/jobs/{job['id']}"
    first = client.get(url)
    tag = first.headers["etag"]
    assert first.json() == job
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(url, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert client.get(url, headers={"if-none-match": '"other"'}).status_code == 200
    with ctx.db.begin() as session:
        claim = store.claim(session, job["id"], "worker", 60)
    changed = client.get(url, headers={"if-none-match": tag})
    assert (changed.status_code, changed.json()["state"]) == (200, "running")
    with ctx.db.begin() as session:
        assert claim is not None
        store.record(session, claim, {}, [NewEvent(type="message", message="a step further")])
    assert client.get(url).headers["etag"] not in (tag, changed.headers["etag"])


@pytest.mark.parametrize("change", ["cancel", "pause", "resume"])
def test_a_change_is_made_only_to_the_job_as_it_was_seen(
    client: TestClient, ctx: Context, job: dict[str, Any], change: str
) -> None:
    url = f"/v1/jobs/{job['id']}"
    seen = client.get(url).headers["etag"]
    if change == "resume":
        client.post(f"{url}/pause")
    else:
        with ctx.db.begin() as session:
            store.claim(session, job["id"], "worker", 60)
    before = client.get(url).json()
    for stale in (seen, f"W/{client.get(url).headers['etag']}"):
        assert_problem(client.post(f"{url}/{change}", headers={"if-match": stale}), 412, "changed_meanwhile")
    assert client.get(url).json() == before, "nothing was changed"
    now = client.get(url).headers["etag"]
    done = client.post(f"{url}/{change}", headers={"if-match": f'"x", {now}'})
    assert done.status_code == 202
    assert done.headers["etag"] == client.get(url).headers["etag"] != now
    assert client.post(f"{url}/{change}", headers={"if-match": "*"}).status_code == 202


def test_of_two_changes_of_the_same_state_one_is_made(client: TestClient, job: dict[str, Any]) -> None:
    url = f"/v1/jobs/{job['id']}"
    headers = {"if-match": client.get(url).headers["etag"]}
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda what: client.post(f"{url}/{what}", headers=headers), ("pause", "cancel")))
    assert sorted(answer.status_code for answer in answers) == [202, 412]


@pytest.mark.parametrize("tag", ["1-2", '"a" b', '"'])
def test_an_etag_without_its_quotes_is_refused(client: TestClient, job: dict[str, Any], tag: str) -> None:
    refused = client.post(f"/v1/jobs/{job['id']}/cancel", headers={"if-match": tag})
    assert assert_problem(refused, 400)["error"]["param"] == "if-match"


def test_however_many_poll_a_job_it_is_read_once(
    server: Server, ctx: Context, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "FRESH_S", 60.0)
    reads = 0
    get, gate = snapshots.jobs.get, threading.Event()

    def counted(*args: Any) -> Any:
        nonlocal reads
        reads += 1
        gate.wait(5)
        return get(*args)

    monkeypatch.setattr(snapshots.jobs, "get", counted)
    known = snapshots.Snapshots(lambda row: row.id.encode())

    async def many() -> set[bytes]:
        polls = [asyncio.create_task(known.of(ctx, job["id"])) for _ in range(100)]
        await asyncio.sleep(0.1)
        polls[0].cancel()
        gate.set()
        return {(await poll).body for poll in polls[1:]}

    assert asyncio.run(many()) == {job["id"].encode()}
    assert reads == 1
    assert server.started


def test_a_job_that_is_not_there_is_asked_for_again(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "FRESH_S", 60.0)
    for _ in range(2):
        assert_problem(client.get("/v1/jobs/job_none"), 404, "job_not_found")


def test_a_change_through_this_process_shows_at_once(
    client: TestClient, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "FRESH_S", 60.0)
    url = f"/v1/jobs/{job['id']}"
    assert client.get(url).json()["state"] == "queued"
    client.post(f"{url}/pause")
    assert client.get(url).json()["state"] == "paused"
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert client.get(url).json()["state"] == "cancelled"
