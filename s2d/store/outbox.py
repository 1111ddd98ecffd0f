"""Messages that must reach the broker. Sending one twice is harmless: the claim decides."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ColumnElement, delete, func, or_, select, update
from sqlalchemy.orm import Session

from s2d.store.database import db_now
from s2d.store.tables import JobRow, OutboxRow


class Message(NamedTuple):
    """Look at this job."""

    id: int
    job_id: str
    #: Whether a worker has had the job before.
    begun: bool


def add(session: Session, job_id: str) -> None:
    session.add(OutboxRow(job_id=job_id, created_at=db_now()))
    session.flush()


def due() -> ColumnElement[bool]:
    """Whether a job need not wait any longer."""
    return or_(JobRow.available_at.is_(None), JobRow.available_at <= db_now())


def unsent(session: Session, limit: int = 100) -> list[Message]:
    """Those whose job need not wait any longer: first of jobs that had begun, then oldest first."""
    begun = JobRow.started_at.is_not(None)
    query = select(OutboxRow.id, OutboxRow.job_id, begun).join(JobRow).where(OutboxRow.sent_at.is_(None), due())
    return [Message(*row) for row in session.execute(query.order_by(begun.desc(), OutboxRow.id).limit(limit))]


def mark_sent(session: Session, message_id: int) -> None:
    session.execute(update(OutboxRow).where(OutboxRow.id == message_id).values(sent_at=db_now()))


def drop_needless(session: Session) -> None:
    """Sent messages of jobs that wait no more go, so that the table stays as small as the queue."""
    queued = select(JobRow.id).where(JobRow.state == "queued")
    session.execute(delete(OutboxRow).where(OutboxRow.sent_at.is_not(None), OutboxRow.job_id.not_in(queued)))


def waiting(session: Session) -> int:
    """Jobs that a worker could run now and whose messages were sent."""
    unsent = select(OutboxRow.job_id).where(OutboxRow.sent_at.is_(None))
    sent = JobRow.state == "queued", due(), JobRow.id.not_in(unsent)
    return session.scalar(select(func.count()).select_from(JobRow).where(*sent)) or 0


def resend_stale(session: Session, older_than_s: float, held: int) -> int:
    """Send again for jobs that are still queued long after their message was sent. Returns how many.

    Args:
        held: messages that the broker has. With one for each waiting job none is lost: the workers are busy, and a copy
            more every time would pile up behind a week-long job.
    """
    if held >= waiting(session):
        return 0
    queued = select(JobRow.id).where(JobRow.state == "queued")
    # One message is enough to wake a worker.
    newest = select(func.max(OutboxRow.id)).where(OutboxRow.job_id.in_(queued)).group_by(OutboxRow.job_id)
    stale = OutboxRow.id.in_(newest), OutboxRow.sent_at < db_now() - older_than_s
    query = update(OutboxRow).where(*stale).values(sent_at=None)
    return session.execute(query).rowcount  # type: ignore[attr-defined]
