"""Jobs of the one plan and file that the store's tests have, made and taken in a transaction each."""

from __future__ import annotations

from s2d.store import jobs
from s2d.store.database import Database


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
