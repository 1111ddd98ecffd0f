"""Idempotency keys, API keys, students and files, on SQLite and on PostgreSQL."""

from __future__ import annotations

import pytest
from store_testing import new_job

from s2d.errors import Conflict, NotFound
from s2d.store import files, idempotency, keys, students
from s2d.store.database import Database
from s2d.store.tables import FileRow, JobRow


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

    new_job(db)
    with pytest.raises(Conflict, match="provenance"), db.begin() as session:
        files.remove(session, "file_1")
    with db.read() as session:
        assert session.get(FileRow, "file_1") is not None
        assert session.get(JobRow, "job_none") is None
