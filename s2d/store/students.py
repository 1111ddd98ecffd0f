"""Students: the models that jobs made and that may be served."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.store.database import db_now
from s2d.store.tables import JobRow, StudentRow


def register(session: Session, *, student_id: str, job_id: str, path: str, arm: str = "workflow") -> StudentRow:
    """What an arm of the job ended with. A second registration of the same student changes nothing."""
    row = session.get(StudentRow, student_id)
    if row is None:
        tenant = session.scalars(select(JobRow.tenant).where(JobRow.id == job_id)).one()
        row = StudentRow(id=student_id, job_id=job_id, arm=arm, tenant=tenant, path=path, created_at=db_now())
        session.add(row)
        session.flush()
        session.refresh(row)
    return row


def get(session: Session, student_id: str) -> StudentRow:
    """Raises NotFound."""
    row = session.get(StudentRow, student_id)
    if row is None:
        raise NotFound(
            f"There is no model {student_id!r}; GET /v1/models lists the students.",
            code="model_not_found",
            param="model",
        )
    return row


def list_all(session: Session) -> Sequence[StudentRow]:
    return session.scalars(select(StudentRow).order_by(StudentRow.created_at.desc(), StudentRow.id)).all()
