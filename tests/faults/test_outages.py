"""Broker, API and host that go away and come back, and replies that are lost (rows 3, 4, 5, 8, 22)."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest
from faults_testing import Fault

from benchmarks.rig import freeze, kill, thaw, until


@pytest.mark.fault(3)
def test_training_goes_on_while_redis_restarts_and_new_jobs_wait_for_it(fault: Fault) -> None:
    fault.rig.start_worker()
    running = fault.job()
    fault.client.wait_for_step(running, "teacher_rl", 5)
    kill(fault.rig.redis)
    meanwhile = fault.job()
    fault.client.wait(running, "succeeded")
    assert fault.client.job(meanwhile)["state"] == "queued"
    fault.rig.start_redis()
    fault.client.wait(meanwhile, "succeeded")
    for job in (running, meanwhile):
        assert fault.states(job) == ["queued", "running", "succeeded"]
        fault.check(job)


@pytest.mark.fault(4)
def test_jobs_whose_messages_redis_has_lost_are_queued_again_from_the_database(fault: Fault) -> None:
    jobs = [fault.job(seed=number) for number in range(3)]
    worker = fault.rig.start_worker()
    until("a claim", lambda: any(fault.client.job(job)["state"] == "running" for job in jobs))
    # Frozen, so that it fetches nothing meanwhile: all that is left of the queue is in the database.
    freeze(worker)
    kill(fault.rig.redis)
    fault.rig.start_redis()
    fault.rig.forget_everything()
    thaw(worker)
    for job in jobs:
        fault.client.wait(job, "succeeded")
        fault.check(job)


@pytest.mark.fault(5)
def test_an_event_stream_goes_on_after_the_api_was_killed_and_the_job_never_noticed(fault: Fault) -> None:
    fault.rig.start_worker()
    job = fault.job()
    seen = read_stream(fault, job, last=None, stop_after=20)
    kill(fault.rig.api)
    fault.rig.start_api()
    seen += read_stream(fault, job, last=seen[-1], stop_after=None)
    assert seen == list(range(1, len(seen) + 1)), "no event twice, none left out"
    assert fault.states(job) == ["queued", "running", "succeeded"]
    fault.check(job)


def read_stream(fault: Fault, job: str, *, last: int | None, stop_after: int | None) -> list[int]:
    """Event ids from after `last`, so many or to the end."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": str(last)} if last else {})
    found: list[int] = []
    with fault.client.http.stream("GET", f"/jobs/{job}/events", headers=headers, timeout=120) as stream:
        for line in stream.iter_lines():
            if line.startswith("id: "):
                found.append(int(line.removeprefix("id: ")))
            if line == "event: done" or len(found) == stop_after:
                return found
    return found


@pytest.mark.fault(8)
def test_a_create_whose_reply_was_lost_is_asked_again_without_a_second_job(fault: Fault) -> None:
    body = {"plan": fault.client.plan(fault.file), "training_file": fault.file}
    ask_and_hang_up(fault, body, key="monday")
    again = fault.client.start(plan=body["plan"], file_id=fault.file, **{"Idempotency-Key": "monday"})
    assert [job["id"] for job in fault.client.http.get("/jobs").json()["data"]] == [again]
    other = {**body, "name": "another"}
    refused = fault.client.http.post("/jobs", json=other, headers={"Idempotency-Key": "monday"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
    assert len(fault.client.http.get("/jobs").json()["data"]) == 1


def ask_and_hang_up(fault: Fault, body: dict[str, Any], key: str) -> None:
    """Send a whole request and, once the job is there, close the connection without reading a byte of the reply."""
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {fault.client.key}\r\n"
        f"Idempotency-Key: {key}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", fault.rig.settings.port)) as connection:
        connection.sendall(head.encode() + content)
        until("the commit", lambda: fault.client.http.get("/jobs").json()["data"])


@pytest.mark.fault(22)
def test_after_the_host_restarts_each_job_is_where_its_row_says(fault: Fault) -> None:
    for _ in range(2):
        fault.rig.start_worker()
    running, cancelling = fault.job(seed=1), fault.job(seed=2)
    for job in (running, cancelling):
        fault.client.wait_for_step(job, "teacher_rl", 12)
    (stubborn,) = fault.rig.stages(cancelling)
    stubborn.suspend()
    queued, paused = fault.job(seed=3), fault.job(seed=4)
    fault.client.ask(paused, "pause")
    assert fault.client.ask(cancelling, "cancel")["state"] == "cancelling"
    crash(fault)
    fault.rig.start_redis()
    fault.rig.start_api()
    assert {job: fault.client.job(job)["state"] for job in (running, cancelling, queued, paused)} == {
        running: "running", cancelling: "cancelling", queued: "queued", paused: "paused",
    }  # fmt: skip
    fault.rig.start_worker()
    fault.client.wait(cancelling, "cancelled")
    for job in (running, queued):
        fault.client.wait(job, "succeeded")
    assert fault.client.job(paused)["state"] == "paused"
    assert fault.states(queued) == ["queued", "running", "succeeded"]
    assert fault.states(running) == ["queued", "running", "queued", "running", "succeeded"]
    for job in (paused, cancelling):
        fault.client.ask(job, "resume")
        fault.client.wait(job, "succeeded")
    for job in (running, cancelling, queued, paused):
        fault.check(job)


def crash(fault: Fault) -> None:
    """Everything of this host at once, stage processes too."""
    stages = fault.rig.stages()
    for part in (*fault.rig.workers, fault.rig.api, fault.rig.redis):
        part.end()
    for process in stages:
        process.kill()
    assert until("no stage lives", lambda: not fault.rig.stages())
