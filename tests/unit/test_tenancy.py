"""A session of one tenant sees that tenant's rows and no others, whichever statement asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from s2d.errors import InvalidRequest, NotFound
from s2d.plan.document import SCHEMA_VERSION
from s2d.store import files, idempotency, jobs, plans, students
from s2d.store.database import Database, db_now
from s2d.store.tables import FileRow, JobRow, PlanRow, PlanTenantRow, StudentRow

FILE = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0, "report": {}}


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """Two tenants, one file, plan, job and student each: `file_a`, `plan_a`, … and the same with b."""
    database = Database(database_url)
    database.migrate()
    for tenant in ("a", "b"):
        with database.of(tenant).begin() as session:
            session.add(FileRow(id=f"file_{tenant}", **FILE, created_at=db_now()))
            session.add(PlanRow(id=f"plan_{tenant}", document={"schema_version": SCHEMA_VERSION}, created_at=db_now()))
            session.flush()
            session.add(PlanTenantRow(plan_id=f"plan_{tenant}", tenant=tenant))
            job = JobRow(id=f"job_{tenant}", plan_id=f"plan_{tenant}", file_id=f"file_{tenant}", state="queued",
                         progress={}, created_at=db_now())  # fmt: skip
            session.add(job)
            session.flush()
            students.register(session, student_id=f"student-{tenant}", job_id=f"job_{tenant}", path="/p")
    yield database
    database.close()


LOOKS: list[Callable[[Session, str], Any]] = [
    lambda session, tenant: files.get(session, f"file_{tenant}"),
    lambda session, tenant: files.get(session, f"file_{tenant}", lock=True),
    lambda session, tenant: files.remove(session, f"file_{tenant}"),
    lambda session, tenant: plans.get(session, f"plan_{tenant}"),
    lambda session, tenant: jobs.get(session, f"job_{tenant}"),
    lambda session, tenant: jobs.request_cancel(session, f"job_{tenant}"),
    lambda session, tenant: jobs.request_pause(session, f"job_{tenant}"),
    lambda session, tenant: jobs.request_resume(session, f"job_{tenant}"),
    lambda session, tenant: students.get(session, f"student-{tenant}"),
    lambda session, tenant: files.list_page(session, after=f"file_{tenant}", limit=5),
    lambda session, tenant: plans.list_page(session, after=f"plan_{tenant}", limit=5),
    lambda session, tenant: jobs.list_page(session, after=f"job_{tenant}", limit=5),
]


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_anothers_looks_as_if_it_were_not_there(db: Database, look: Callable[[Session, str], Any]) -> None:
    def error(tenant: str) -> str:
        with db.of("a").begin() as session, pytest.raises((NotFound, InvalidRequest)) as refused:
            look(session, tenant)
        return refused.value.message

    assert error("b").replace("b'", "nobody'") == error("nobody"), "the two answers must not differ"


def test_lists_and_counts_are_the_tenants_own(db: Database) -> None:
    with db.of("a").read() as session:
        assert [row.id for row in files.list_page(session, after=None, limit=5)[0]] == ["file_a"]
        assert [row.id for row in plans.list_page(session, after=None, limit=5)[0]] == ["plan_a"]
        assert [row.id for row in jobs.list_page(session, after=None, limit=5)[0]] == ["job_a"]
        assert [row.id for row in students.list_all(session)] == ["student-a"]
        assert session.scalar(select(func.count()).select_from(JobRow)) == 1
    with db.read() as session:
        assert {row.id for row in jobs.list_page(session, after=None, limit=5)[0]} == {"job_a", "job_b"}
        assert {row.tenant for row in students.list_all(session)} == {"a", "b"}


def test_a_change_of_many_rows_stays_with_the_tenant(db: Database) -> None:
    with db.of("a").begin() as session:
        session.execute(update(JobRow).values(name="mine"))
        session.execute(delete(StudentRow))
    with db.read() as session:
        assert {row.id: row.name for row in session.scalars(select(JobRow))} == {"job_a": "mine", "job_b": None}
        assert [row.id for row in students.list_all(session)] == ["student-b"]


def test_a_student_is_its_jobs_tenants_whoever_registers_it(db: Database) -> None:
    with db.begin() as session:
        row = students.register(session, student_id="s", job_id="job_b", path="/p", arm="direct_grpo")
        assert row.tenant == "b"


def test_tenants_may_choose_the_same_idempotency_key(db: Database) -> None:
    for tenant in ("a", "b", "default"):
        with db.of(tenant).begin() as session:
            assert idempotency.recall(session, "jobs", "k", "h") is None
            idempotency.remember(session, "jobs", "k", "h", f"job_{tenant}")
    with db.of("b").read() as session:
        assert idempotency.recall(session, "jobs", "k", "h") == "job_b"
