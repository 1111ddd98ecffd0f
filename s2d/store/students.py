"""Students: the models that jobs made and that may be served."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.plan.graph import WORKFLOW
from s2d.store.database import db_now
from s2d.store.tables import JobRow, StudentRow
from s2d.store.tenancy import EVERYBODYS
from s2d.store.versions import Expected, check


def id_of(job_id: str, arm: str = WORKFLOW, *, suffix: str | None = None) -> str:
    """What the student of a job's arm is called: those of the other arms after the workflow's.

    Args:
        suffix: any text; its ASCII letters and digits become part of the name, so that it is safe in an address.
    """
    plain = unicodedata.normalize("NFKD", suffix or "").encode("ascii", "ignore").decode().lower()
    # One character may become several, and the whole id has a place for so many.
    words = "-".join(re.findall("[a-z0-9]+", plain))[:64].strip("-")
    workflow = "-".join(["student", *filter(None, [words]), job_id.removeprefix("job_")])
    return workflow if arm == WORKFLOW else f"{workflow}.{arm}"


def register(session: Session, *, student_id: str, job_id: str, path: str, arm: str = WORKFLOW) -> StudentRow:
    """What an arm of the job ended with. A second registration of the same student changes nothing."""
    row = session.get(StudentRow, student_id)
    if row is None:
        tenant = session.scalars(select(JobRow.tenant).where(JobRow.id == job_id)).one()
        row = StudentRow(id=student_id, job_id=job_id, arm=arm, tenant=tenant, path=path, created_at=db_now())
        session.add(row)
        session.flush()
        session.refresh(row)
    return row


def version(row: StudentRow) -> str:
    """Which weights it has and since when: the name may be given again after the student was deleted."""
    return hashlib.sha256(f"{row.created_at!r} {row.path}".encode()).hexdigest()[:16]


def get(session: Session, student_id: str, *, lock: bool = False) -> StudentRow:
    """Raises NotFound."""
    row = session.get(StudentRow, student_id, with_for_update=lock or None)
    if row is None:
        raise NotFound(
            f"There is no model {student_id!r}; GET /v1/models lists the students.",
            code="model_not_found",
            param="model",
        )
    return row


def list_all(session: Session) -> Sequence[StudentRow]:
    return session.scalars(select(StudentRow).order_by(StudentRow.created_at.desc(), StudentRow.id)).all()


def of_job(session: Session, job_id: str) -> Sequence[StudentRow]:
    """The students of a job's arms; none while it has not succeeded."""
    return session.scalars(select(StudentRow).where(StudentRow.job_id == job_id).order_by(StudentRow.id)).all()


def remove(session: Session, student_id: str, expected: Expected = None) -> tuple[StudentRow, bool]:
    """Takes it off the list: the row, and whether no other student, of any tenant, has the same weights.

    Raises:
        NotFound, Changed
    """
    # Locked, so that of two removals at once the later one finds nothing.
    row = get(session, student_id, lock=True)
    check(expected, version(row), f"Model {student_id!r} is another one now")
    session.execute(delete(StudentRow).where(StudentRow.id == student_id))
    query = select(func.count()).select_from(StudentRow).where(StudentRow.path == row.path)
    return row, session.scalar(query, execution_options=EVERYBODYS) == 0
