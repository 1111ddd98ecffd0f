"""The store's promises, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, insert
from sqlalchemy.exc import IntegrityError

from s2d.errors import Conflict, InvalidRequest, NotFound
from s2d.events import NewEvent, Origin
from s2d.plan.graph import Account
from s2d.store import events, files, idempotency, jobs, keys, ledger, outbox, plans, students
from s2d.store.database import Database, db_now
from s2d.store.events import LeaseLost
from s2d.store.states import FINAL, STATES, TRANSITIONS, sources
from s2d.store.tables import ApiKeyRow, Base, FileRow, JobRow, LedgerRow, PlanRow


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    with database.begin() as session:
        session.add(PlanRow(id="plan_1", document={}, created_at=db_now()))
        fields = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0}
        session.add(FileRow(id="file_1", **fields, report={}, created_at=db_now()))
    yield database
    database.close()


def new_job(db: Database) -> str:
    with db.begin() as session:
        return jobs.create(session, plan_id="plan_1", file_id="file_1", name=None).id


def claim(db: Database, job_id: str, lease_s: float = 60.0) -> jobs.Claim | None:
    with db.begin() as session:
        return jobs.claim(session, job_id, "worker", lease_s)


def held(db: Database, job_id: str, lease_s: float = 60.0) -> jobs.Claim:
    taken = claim(db, job_id, lease_s)
    assert taken is not None
    return taken


def state_of(db: Database, job_id: str) -> str:
    with db.read() as session:
        return jobs.get(session, job_id).state


def test_migrations_make_the_tables_that_the_code_describes(db: Database) -> None:
    with db.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def fill_as_released(database: Database) -> None:
    """A row in every table, as the schema that is there has them."""
    known = MetaData()
    known.reflect(database.engine)
    job = {"id": "job_1", "plan_id": "plan_1", "file_id": "file_1", "state": "running", "epoch": 3, "attempt": 2}
    label = {"job_id": "job_1", "role": "teacher_rl", "label_id": "a", "arm": "workflow", "stage": "teacher_rl"}
    rows: dict[str, list[dict[str, Any]]] = {
        "plans": [{"id": "plan_1", "document": {}}],
        "files": [{"id": "file_1", "filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1,
                   "unlabeled": 0, "report": {}}],
        "jobs": [{**job, "last_seq": 1, "progress": {}}],
        "events": [{"job_id": "job_1", "seq": 1, "epoch": 3, "type": "message", "level": "info", "message": "m",
                    "data": {}}],
        "label_ledger": [label, {**label, "label_id": "b", "role": "validation", "stage": "teacher_rollouts"},
                         {**label, "label_id": "c", "role": "test", "stage": "evaluate"}],
        "outbox": [{"id": 1, "job_id": "job_1"}],
        "students": [{"id": "student-1", "job_id": "job_1", "path": "/p"}],
        "api_keys": [{"id": "key_1", "name": "first", "key_hash": "h"}],
        "plan_tenants": [{"plan_id": "plan_1", "tenant": "default"}],
        "idempotency_keys": [{"scope": "jobs", "key": "k", "request_hash": "h", "resource_id": "job_1"}],
    }  # fmt: skip
    there = set(known.tables) - {"alembic_version"}
    assert there <= set(rows)
    with database.begin() as session:
        for name, some in ((name, some) for name, some in rows.items() if name in there):
            columns = known.tables[name].columns
            dated = {"created_at": 1.5} if "created_at" in columns else {}
            for row in some:
                kept = {column: value for column, value in {**row, **dated}.items() if column in columns}
                session.execute(insert(known.tables[name]).values(kept))


@pytest.mark.parametrize("released", ["0001", "0002", "0003"])
def test_every_released_schema_is_carried_over_with_what_is_in_it(database_url: str, released: str) -> None:
    database = Database(database_url)
    database.migrate(released)
    fill_as_released(database)
    database.migrate()
    with database.begin() as session:
        job = jobs.get(session, "job_1")
        assert (job.state, job.epoch, job.attempt, job.available_at, job.events_read) == ("running", 3, 2, None, None)
        assert [event.message for event in events.since(session, "job_1", 0, 10)] == ["m"]
        assert ledger.spent(session, "job_1") == [
            ("workflow", "evaluate", "test", 1),
            ("workflow", "teacher_rl", "teacher_rl", 1),
            ("workflow", "teacher_rollouts", "validation", 1),
        ]
        assert [message.job_id for message in outbox.unsent(session)] == ["job_1"]
        student = students.get(session, "student-1")
        assert (student.path, student.arm, student.tenant, job.tenant) == ("/p", "workflow", "default", "default")
        assert idempotency.recall(session, "jobs", "k", "h") == "job_1"
        jobs.record(session, jobs.Claim("job_1", 3, 2), {"step": 1}, [NewEvent(type="message")])
    with database.of("default").read() as session:
        assert (plans.get(session, "plan_1").id, files.get(session, "file_1").id) == ("plan_1", "file_1")
        key = session.get(ApiKeyRow, "key_1")
        assert key is not None
        assert (key.tenant, key.scopes) == ("default", "admin")
    database.close()


def test_migrating_from_several_processes_at_once_is_harmless(database_url: str) -> None:
    code = "import sys; from s2d.store.database import Database; Database(sys.argv[1]).migrate()"
    starting = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(3)]
    assert [process.wait(60) for process in starting] == [0, 0, 0]
    with Database(database_url).begin() as session:
        assert keys.find(session, "nothing") is None


def test_the_database_clock_agrees_with_this_host(db: Database) -> None:
    with db.begin() as session:
        row, _ = keys.create(session, "clock")
    assert abs(row.created_at - time.time()) < 2


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


def test_a_held_lease_is_left_alone(db: Database) -> None:
    held(db, new_job(db))
    with db.begin() as session:
        assert jobs.requeue_lost(session, max_attempts=1) == []


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


def test_a_message_is_written_with_its_job_and_sent_again_when_lost(db: Database) -> None:
    job_id = new_job(db)
    with db.begin() as session:
        (message,) = outbox.unsent(session)
        assert message.job_id == job_id
        outbox.mark_sent(session, message.id)
        assert outbox.resend_stale(session, older_than_s=60) == 0
        assert outbox.resend_stale(session, older_than_s=-1) == 1
        assert len(outbox.unsent(session)) == 1
    taken = held(db, job_id)
    with db.begin() as session:
        assert jobs.finish(session, taken, "queued") == "queued"
        for one in outbox.unsent(session):
            outbox.mark_sent(session, one.id)
        assert outbox.resend_stale(session, older_than_s=-1) == 1, "one message a job, however many were sent"
    held(db, job_id)
    with db.begin() as session:
        outbox.mark_sent(session, max(one.id for one in outbox.unsent(session)))
        assert outbox.resend_stale(session, older_than_s=-1) == 0
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


def test_a_label_is_spent_once(db: Database) -> None:
    claim = held(db, new_job(db))
    teacher, student = Account("workflow", "teacher_rl"), Account("workflow", "student_rl")
    with db.begin() as session:
        ledger.spend(session, claim, teacher, "teacher_rl", ["a", "b"])
        ledger.spend(session, claim, Account("workflow", "evaluate"), "test", ["c"])
    with db.begin() as session:
        ledger.spend(session, claim, teacher, "teacher_rl", ["a", "b"])
    with pytest.raises(Conflict, match="Label b was spent by teacher_rl"), db.begin() as session:
        ledger.spend(session, claim, student, "student_rl", ["d", "b"])
    with db.read() as session:
        assert ledger.spent(session, claim.job_id) == [
            ("workflow", "evaluate", "test", 1),
            ("workflow", "teacher_rl", "teacher_rl", 2),
        ]


def test_the_database_itself_refuses_a_label_that_is_spent_twice(db: Database) -> None:
    claim = held(db, new_job(db))
    row = {"job_id": claim.job_id, "arm": "workflow", "label_id": "a", "role": "teacher_rl"}
    with db.begin() as session:
        session.execute(insert(LedgerRow), [{**row, "stage": "teacher_rl"}])
    with pytest.raises(IntegrityError), db.begin() as session:
        session.execute(insert(LedgerRow), [{**row, "stage": "student_rl"}])


def test_a_control_has_an_account_of_its_own(db: Database) -> None:
    claim = held(db, new_job(db))
    with db.begin() as session:
        ledger.spend(session, claim, Account("workflow", "teacher_rl"), "teacher_rl", ["a"])
        ledger.spend(session, claim, Account("direct_grpo", "direct_grpo"), "teacher_rl", ["a"])
    with db.read() as session:
        assert [one.arm for one in ledger.spent(session, claim.job_id)] == ["direct_grpo", "workflow"]


def test_a_worker_that_lost_its_lease_spends_no_label(db: Database) -> None:
    claim = held(db, new_job(db))
    stale = dataclasses.replace(claim, epoch=claim.epoch - 1)
    with pytest.raises(LeaseLost), db.begin() as session:
        ledger.spend(session, stale, Account("workflow", "teacher_rl"), "teacher_rl", ["a"])


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


def test_idempotency_keys_refuse_another_request(db: Database) -> None:
    with db.begin() as session:
        assert idempotency.recall(session, "jobs", "k", "h1") is None
        idempotency.remember(session, "jobs", "k", "h1", "job_1")
    with db.begin() as session:
        assert idempotency.recall(session, "jobs", "k", "h1") == "job_1"
        with pytest.raises(Conflict):
            idempotency.recall(session, "jobs", "k", "h2")


def test_keys_are_stored_hashed_and_can_be_revoked(db: Database) -> None:
    with db.begin() as session:
        row, secret = keys.create(session, "mine")
        assert secret not in repr(vars(row))
        found = keys.find(session, secret)
        assert found is not None
        assert found.id == row.id
        revoked_at = keys.revoke(session, row.id).revoked_at
        assert revoked_at is not None
        assert keys.find(session, secret) is None
        assert not keys.adopt(session, "again", secret), "a revoked key stays revoked"
        assert keys.revoke(session, row.id).revoked_at == revoked_at
        with pytest.raises(NotFound):
            keys.revoke(session, "key_none")


def test_a_student_is_registered_once(db: Database) -> None:
    job_id = new_job(db)
    with db.begin() as session:
        first = students.register(session, student_id="student-1", job_id=job_id, path="/a")
        again = students.register(session, student_id="student-1", job_id=job_id, path="/b")
        assert first is again
        assert [row.id for row in students.list_all(session)] == ["student-1"]
        with pytest.raises(NotFound):
            students.get(session, "student-2")


def test_deleting_what_a_job_needs_is_refused(db: Database) -> None:
    from s2d.store import files

    new_job(db)
    with pytest.raises(Conflict, match="provenance"), db.begin() as session:
        files.remove(session, "file_1")
    with db.read() as session:
        assert session.get(FileRow, "file_1") is not None
        assert session.get(JobRow, "job_none") is None
