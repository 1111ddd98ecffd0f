"""Who may write about a job, and what becomes of one whose worker is lost, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
import time

import pytest
from sqlalchemy import text
from store_testing import claim, filled, held, new_job

from s2d.events import NewEvent, Origin
from s2d.store import database, events, jobs, outbox
from s2d.store.database import DATABASE_AWAY, Database
from s2d.store.events import LeaseLost
from s2d.store.tables import JobRow


def test_one_of_many_claims_wins(db: Database) -> None:
    job_id = new_job(db)
    won: list[jobs.Claim] = []

    def take() -> None:
        if (taken := claim(db, job_id)) is not None:
            won.append(taken)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(one.epoch, one.attempt) for one in won] == [(1, 1)]


def test_a_stale_epoch_can_write_nothing(db: Database) -> None:
    job_id = new_job(db)
    old = held(db, job_id, lease_s=-1)
    assert claim(db, job_id) is None, "the reaper gives it back first, so that attempts are counted and wait"
    with db.begin() as session:
        jobs.requeue_lost(session, max_attempts=5)
    new = held(db, job_id)
    assert new.epoch > old.epoch
    writes = (
        lambda session: jobs.heartbeat(session, old, 60),
        lambda session: jobs.record(session, old, {"step": 9}, [NewEvent(type="message")]),
        lambda session: jobs.finish(session, old, "succeeded"),
        lambda session: events.append(session, job_id, old.epoch, [NewEvent(type="message")]),
    )
    for write in writes:
        with pytest.raises(LeaseLost), db.begin() as session:
            write(session)
    with db.read() as session:
        job = jobs.get(session, job_id)
        assert (job.state, job.progress, job.epoch) == ("running", {}, new.epoch)


def test_events_are_numbered_without_gaps_whoever_writes_them(db: Database) -> None:
    job_id = new_job(db)
    taken = held(db, job_id)

    def write() -> None:
        for _ in range(10):
            with db.begin() as session:
                jobs.record(session, taken, {}, [NewEvent(type="message"), NewEvent(type="message")])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with db.read() as session:
        numbers = [event.seq for event in events.since(session, job_id, 0, 1000)]
    assert numbers == list(range(1, 2 + 80 + 1))


def test_a_failed_write_leaves_no_event_and_no_gap(db: Database) -> None:
    job_id = new_job(db)
    taken = held(db, job_id)
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        jobs.record(session, taken, {"step": 1}, [NewEvent(type="message")])
        _ = 1 / 0
    with db.begin() as session:
        jobs.record(session, taken, {"step": 2}, [NewEvent(type="message")])
    with db.read() as session:
        assert [event.seq for event in events.since(session, job_id, 0, 10)] == [1, 2, 3]


def test_the_reaper_queues_a_lost_job_again_and_fences_its_worker(db: Database) -> None:
    job_id = new_job(db)
    lost = held(db, job_id, lease_s=0.01)
    time.sleep(0.05)
    with db.begin() as session:
        assert [one[:2] for one in jobs.requeue_lost(session, max_attempts=5)] == [(job_id, "queued")]
        assert jobs.requeue_lost(session, max_attempts=5) == []
    with pytest.raises(LeaseLost), db.begin() as session:
        jobs.heartbeat(session, lost, 60)
    assert held(db, job_id).attempt == 2


def test_a_job_is_given_up_after_the_last_attempt(db: Database) -> None:
    job_id = new_job(db)
    held(db, job_id, lease_s=0.01)
    time.sleep(0.05)
    with db.begin() as session:
        assert [one[:2] for one in jobs.requeue_lost(session, max_attempts=1)] == [(job_id, "failed")]
    with db.read() as session:
        job = jobs.get(session, job_id)
        assert job.error is not None
        assert job.error["code"] == "lost_worker"
        assert job.finished_at is not None


def test_each_further_attempt_waits_twice_as_long(db: Database) -> None:
    job_id, waits = new_job(db), []
    for _ in range(3):
        with db.begin() as session:
            session.get_one(JobRow, job_id).available_at = None
        held(db, job_id, lease_s=-1)
        with db.begin() as session:
            assert [one[:2] for one in jobs.requeue_lost(session, max_attempts=5, backoff_s=100)] == [
                (job_id, "queued")
            ]
            assert outbox.unsent(session) == [], "no message before its time"
        assert claim(db, job_id) is None
        with db.read() as session:
            waits.append(round(jobs.get(session, job_id).available_at - time.time(), -1))  # type: ignore[operator]
    assert waits == [100, 200, 400]
    with db.begin() as session:
        jobs.request_pause(session, job_id)
        jobs.request_resume(session, job_id)
    assert held(db, job_id).attempt == 1, "whoever asks for it need not wait"


def test_workers_that_got_further_are_not_counted_together(db: Database) -> None:
    job_id = new_job(db)

    def lose(told: list[NewEvent]) -> tuple[str, float | None]:
        taken = held(db, job_id, lease_s=-1)
        with db.begin() as session:
            jobs.record(session, taken, {}, told)
            (moved,) = jobs.requeue_lost(session, max_attempts=3, backoff_s=0.001)
            row = session.get_one(JobRow, job_id)
            row.available_at = None
            return moved.state, events.since(session, job_id, row.last_seq - 1, 1)[0].data.get("wait_s")

    def checkpoint(step: int) -> NewEvent:
        return NewEvent(type="checkpoint", stage="opd", step=step, message=f"checkpoint-{step} written")

    running = NewEvent(type="stage", stage="opd", message="opd running")
    for step in range(1, 8):
        assert lose([running, checkpoint(step)]) == ("queued", 0.001), "as often as it likes"
    # It goes on from a checkpoint before, or says nothing at all: no further than it was.
    assert lose([running, checkpoint(7), NewEvent(type="metrics", stage="opd", step=8)]) == ("queued", 0.002)
    with db.begin() as session:
        jobs.finish(session, held(db, job_id), "queued")
    assert lose([]) == ("failed", None), "handing it back in between is no progress either"
    with db.begin() as session:
        assert jobs.request_resume(session, job_id).state == "queued"
    assert lose([]) == ("queued", 0.001), "resumed, it begins to count anew"


def test_where_reading_goes_on_is_stored_with_the_events(db: Database) -> None:
    taken = held(db, new_job(db))
    read = [NewEvent(type="message", origin=Origin(file="stages/a/events-001.jsonl", offset=n)) for n in (10, 20)]
    with db.begin() as session:
        jobs.record(session, taken, {}, [*read, NewEvent(type="message")])
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        jobs.record(session, taken, {}, [read[0].model_copy(update={"origin": Origin(file="x", offset=1)})])
        _ = 1 / 0
    with db.read() as session:
        assert jobs.get(session, taken.job_id).events_read == {"file": "stages/a/events-001.jsonl", "offset": 20}


def test_a_job_may_be_handed_back_for_later(db: Database) -> None:
    taken = held(db, new_job(db))
    with db.begin() as session:
        assert jobs.finish(session, taken, "queued", wait_s=60) == "queued"
    assert claim(db, taken.job_id) is None
    with db.begin() as session:
        jobs.request_pause(session, taken.job_id)
        jobs.request_resume(session, taken.job_id)
    assert held(db, taken.job_id).attempt == 1, "whoever asks for it need not wait"


def test_a_held_lease_is_left_alone(db: Database) -> None:
    held(db, new_job(db))
    with db.begin() as session:
        assert jobs.requeue_lost(session, max_attempts=1) == []


def test_a_write_that_is_tried_again_after_a_lost_answer_is_stored_once(db: Database) -> None:
    taken = held(db, new_job(db))
    told = [NewEvent(type="process"), NewEvent(type="message", origin=Origin(file="a", offset=10))]
    for write in ("w1", "w1", "w2", "w2", "w1"):
        with db.begin() as session:
            jobs.record(session, taken, {"step": 1}, told, write)
    with db.read() as session:
        stored = [row.type for row in events.since(session, taken.job_id, 0, 100)]
    assert stored == ["state", "state", *3 * ["process", "message"]]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_worker_that_sleeps_in_a_write_does_not_keep_its_job_from_others(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(database_url) as db:
        monkeypatch.setattr(database, "MOST_IDLE_S", 1)
        db.engine.dispose()
        asleep = held(db, new_job(db), lease_s=-1)

        def moved() -> list[jobs.Moved]:
            with db.begin() as session:
                return jobs.requeue_lost(session, max_attempts=5)

        with pytest.raises(DATABASE_AWAY), db.begin() as session:
            jobs.hold(session, asleep)
            deadline = time.monotonic() + 30
            while not (found := moved()) and time.monotonic() < deadline:
                time.sleep(0.1)
            assert [one.state for one in found] == ["queued"]
        with pytest.raises(LeaseLost), db.begin() as session:
            jobs.hold(session, asleep)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_server_that_has_become_a_standby_is_away(database_url: str) -> None:
    """As after a failover, to a connection that was made before it."""
    with filled(database_url) as db:
        taken = held(db, new_job(db))
        with pytest.raises(DATABASE_AWAY), db.begin() as session:
            session.execute(text("SET TRANSACTION READ ONLY"))
            jobs.hold(session, taken)
        with db.begin() as session:
            jobs.hold(session, taken)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_janitor_may_take_its_time_over_a_job_that_it_holds(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(database_url) as db:
        taken = held(db, new_job(db))
        with db.begin() as session:
            jobs.finish(session, taken, "failed")
        monkeypatch.setattr(database, "MOST_IDLE_S", 1)
        db.engine.dispose()
        with db.begin() as session:
            assert jobs.hold_ended(session, taken.job_id)
            time.sleep(1.5)
            assert jobs.hold_ended(session, taken.job_id)
        with pytest.raises(DATABASE_AWAY), db.begin() as session:
            jobs.get(session, taken.job_id)
            time.sleep(1.5)
            jobs.now(session)


def test_what_two_find_of_a_lost_job_is_stored_by_one(db: Database) -> None:
    taken = held(db, new_job(db))
    at = [Origin(file="a", offset=offset) for offset in (10, 20, 30)]
    with db.begin() as session:
        jobs.record(session, taken, {}, [NewEvent(type="message", origin=at[0])])
        jobs.request_cancel(session, taken.job_id)
        jobs.finish(session, taken, "queued")
    missed = [[NewEvent(type="message", message=str(one.offset), origin=one)] for one in at[1:]]
    end = [NewEvent(type="process", message="ended", data={"state": "ended", "attempt": 1})]

    def tell(some: list[NewEvent], since: Origin | None) -> Origin | None:
        with db.begin() as session:
            return jobs.record_missed(session, taken.job_id, taken.epoch, some, since)

    assert tell(missed[0], at[0]) == at[1]
    with pytest.raises(LeaseLost):
        tell(missed[0], at[0])
    assert tell(missed[1], at[1]) == tell(end, at[2]) == at[2]
    assert tell(end, at[2]) == at[2], "by one that was killed before it could note that it had told it"
    for since in (None, at[1]):
        with pytest.raises(LeaseLost):
            tell(end, since)
    with db.read() as session:
        messages = [row.message for row in events.since(session, taken.job_id, 0, 100) if row.type != "state"]
    assert messages == ["", "20", "30", "ended"]


def test_nothing_is_sent_again_while_the_broker_has_a_message_for_each_job_that_can_run(db: Database) -> None:
    ids = [new_job(db) for _ in range(3)]
    waits = held(db, new_job(db), lease_s=-1)
    with db.begin() as session:
        jobs.requeue_lost(session, max_attempts=5, backoff_s=1000)
        for message in outbox.unsent(session):
            outbox.mark_sent(session, message.id)
        assert jobs.get(session, waits.job_id).state == "queued"
        assert outbox.waiting(session) == 3
        outbox.add(session, ids[0])
        assert outbox.waiting(session) == 2, "one is about to be sent"
        outbox.mark_sent(session, outbox.unsent(session)[0].id)
        assert outbox.resend_stale(session, older_than_s=-1, held=3) == 0
        assert outbox.resend_stale(session, older_than_s=-1, held=2) == 3
        assert sorted(one.job_id for one in outbox.unsent(session)) == sorted(ids)


def test_messages_of_jobs_that_had_begun_come_first(db: Database) -> None:
    fresh, begun, handed_back = (new_job(db) for _ in range(3))
    for job_id in (begun, handed_back):
        taken = held(db, job_id)
        with db.begin() as session:
            jobs.finish(session, taken, "queued")
    with db.begin() as session:
        for message in outbox.unsent(session):
            outbox.mark_sent(session, message.id)
        assert outbox.resend_stale(session, older_than_s=-1, held=0) == 3
        waiting = outbox.unsent(session)
    assert [(one.job_id, one.begun) for one in waiting] == [(begun, True), (handed_back, True), (fresh, False)]
    assert waiting[0].id > waiting[2].id, "although it was written later"


def test_a_message_is_written_with_its_job_and_sent_again_when_lost(db: Database) -> None:
    job_id = new_job(db)
    with db.begin() as session:
        (message,) = outbox.unsent(session)
        assert message.job_id == job_id
        outbox.mark_sent(session, message.id)
        assert outbox.resend_stale(session, older_than_s=60, held=0) == 0
        assert outbox.resend_stale(session, older_than_s=-1, held=0) == 1
        assert len(outbox.unsent(session)) == 1
    taken = held(db, job_id)
    with db.begin() as session:
        assert jobs.finish(session, taken, "queued") == "queued"
        for one in outbox.unsent(session):
            outbox.mark_sent(session, one.id)
        assert outbox.resend_stale(session, older_than_s=-1, held=0) == 1, "one message a job, however many were sent"
    held(db, job_id)
    with db.begin() as session:
        outbox.mark_sent(session, max(one.id for one in outbox.unsent(session)))
        outbox.drop_needless(session)
        assert outbox.resend_stale(session, older_than_s=-1, held=0) == 0
        assert outbox.unsent(session) == []


def test_handing_a_job_back_does_not_count_as_losing_it(db: Database) -> None:
    job_id = new_job(db)
    for _ in range(3):
        taken = held(db, job_id)
        assert taken.attempt == 1
        with db.begin() as session:
            jobs.finish(session, taken, "queued")


def test_a_rolled_back_job_leaves_no_message(db: Database) -> None:
    with pytest.raises(ZeroDivisionError), db.begin() as session:
        jobs.create(session, plan_id="plan_1", file_id="file_1", name=None)
        _ = 1 / 0
    with db.read() as session:
        assert outbox.unsent(session) == []
