"""What a user asks of a job, in each of its states, on SQLite and on PostgreSQL."""

from __future__ import annotations

import time

import pytest
from store_testing import claim, held, new_job

from s2d.errors import Conflict, InvalidRequest
from s2d.store import jobs, outbox
from s2d.store.database import Database
from s2d.store.events import LeaseLost
from s2d.store.states import FINAL, STATES, TRANSITIONS, sources


def test_every_state_is_reachable_and_final_states_stay() -> None:
    assert set(TRANSITIONS) == set(STATES)
    assert {"succeeded", "failed", "cancelled"} == FINAL
    assert all(sources(state) for state in STATES)
    assert TRANSITIONS["succeeded"] == frozenset()


def test_a_waiting_job_is_paused_at_once_and_waits_again_when_resumed(db: Database) -> None:
    job_id = new_job(db)
    with db.begin() as session:
        assert jobs.request_pause(session, job_id).state == "paused"
        assert jobs.request_pause(session, job_id).state == "paused"
    assert claim(db, job_id) is None, "nobody takes a paused job"
    with db.begin() as session:
        sent = len(outbox.unsent(session))
        assert jobs.request_resume(session, job_id).state == "queued"
        assert jobs.request_resume(session, job_id).state == "queued"
        assert len(outbox.unsent(session)) == sent + 1
    assert claim(db, job_id) is not None


def test_a_running_job_is_paused_when_its_worker_lets_go(db: Database) -> None:
    taken = held(db, new_job(db))
    with db.begin() as session:
        assert jobs.request_pause(session, taken.job_id).state == "pausing"
        assert jobs.heartbeat(session, taken, 60) == "pausing"
    with db.begin() as session, pytest.raises(Conflict, match="pausing and cannot be resumed"):
        jobs.request_resume(session, taken.job_id)
    with db.begin() as session:
        assert jobs.finish(session, taken, "queued") == "paused"
    with db.read() as session:
        assert jobs.get(session, taken.job_id).attempt == 0


@pytest.mark.parametrize(("asked", "left"), [("pause", "paused"), ("cancel", "cancelled")])
def test_what_was_asked_of_a_lost_worker_is_done(db: Database, asked: str, left: str) -> None:
    taken = held(db, new_job(db), lease_s=0.01)
    with db.begin() as session:
        getattr(jobs, f"request_{asked}")(session, taken.job_id)
    time.sleep(0.05)
    with db.begin() as session:
        assert [one[:2] for one in jobs.requeue_lost(session, 3)] == [(taken.job_id, left)]
    with db.begin() as session, pytest.raises(LeaseLost):
        jobs.finish(session, taken, "succeeded")


def test_a_job_that_ends_before_it_is_paused_has_ended(db: Database) -> None:
    taken = held(db, new_job(db))
    with db.begin() as session:
        jobs.request_pause(session, taken.job_id)
    with db.begin() as session:
        assert jobs.finish(session, taken, "succeeded") == "succeeded"


@pytest.mark.parametrize("end", ["failed", "cancelled"])
def test_an_ended_job_is_resumed_with_all_its_attempts(db: Database, end: str) -> None:
    taken = held(db, new_job(db))
    with db.begin() as session:
        if end == "cancelled":
            jobs.request_cancel(session, taken.job_id)
        jobs.finish(session, taken, "failed", error={"code": "disk_full", "message": "no space"})
    with db.begin() as session:
        row = jobs.request_resume(session, taken.job_id)
        assert (row.state, row.attempt, row.error, row.finished_at) == ("queued", 0, None, None)
    assert held(db, taken.job_id).epoch > taken.epoch


def test_a_job_that_has_succeeded_is_not_resumed(db: Database) -> None:
    taken = held(db, new_job(db))
    with db.begin() as session:
        jobs.finish(session, taken, "succeeded")
    for ask in (jobs.request_resume, jobs.request_pause):
        with pytest.raises(Conflict), db.begin() as session:
            ask(session, taken.job_id)


def test_cancelling_a_queued_job_ends_it_and_nobody_can_claim_it(db: Database) -> None:
    job_id = new_job(db)
    with db.begin() as session:
        assert jobs.request_cancel(session, job_id).state == "cancelled"
    assert claim(db, job_id) is None
    with db.begin() as session:
        assert jobs.request_cancel(session, job_id).state == "cancelled"


@pytest.mark.parametrize("outcome", ["succeeded", "failed", "queued"])
def test_a_job_that_is_being_cancelled_ends_cancelled(db: Database, outcome: str) -> None:
    job_id = new_job(db)
    taken = held(db, job_id)
    with db.begin() as session:
        assert jobs.request_cancel(session, job_id).state == "cancelling"
    with db.begin() as session:
        assert jobs.heartbeat(session, taken, 60) == "cancelling"
        assert jobs.finish(session, taken, outcome, error={"code": "x"}) == "cancelled"  # type: ignore[arg-type]
    with db.read() as session:
        job = jobs.get(session, job_id)
        assert (job.state, job.error, job.student_id) == ("cancelled", None, None)


def test_a_finished_job_cannot_be_cancelled(db: Database) -> None:
    job_id = new_job(db)
    taken = held(db, job_id)
    with db.begin() as session:
        jobs.finish(session, taken, "succeeded", student_id="student-1")
    with pytest.raises(Conflict, match="already succeeded"), db.begin() as session:
        jobs.request_cancel(session, job_id)


def test_pages_neither_repeat_nor_skip(db: Database) -> None:
    made = [new_job(db) for _ in range(7)]
    seen: list[str] = []
    after, more = None, True
    while more:
        with db.read() as session:
            rows, more = jobs.list_page(session, after=after, limit=3)
        seen += [row.id for row in rows]
        after = seen[-1]
        new_job(db)  # newer ones come before the cursor and must not disturb it
    assert seen == made[::-1]
    with pytest.raises(InvalidRequest, match="cursor"), db.read() as session:
        jobs.list_page(session, after="job_nothing", limit=3)
