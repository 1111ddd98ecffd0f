"""A database with one plan and one file, and jobs of them, made and taken in a transaction each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from s2d.store import jobs
from s2d.store.database import Database, db_now
from s2d.store.tables import FileRow, PlanRow


@contextmanager
def filled(database_url: str) -> Iterator[Database]:
    """`plan_1` and `file_1` to make jobs of."""
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
