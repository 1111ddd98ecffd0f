"""Every schema that was released becomes the present one, on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import MetaData, insert

from s2d.events import NewEvent
from s2d.store import events, files, idempotency, jobs, keys, ledger, outbox, plans, students
from s2d.store.database import Database
from s2d.store.tables import ApiKeyRow, Base


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
        "students": [{"id": "student-1", "job_id": "job_1", "path": "/p", "arm": "workflow", "tenant": "default"}],
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


@pytest.mark.parametrize("released", ["0001", "0002", "0003", "0004", "0005"])
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
