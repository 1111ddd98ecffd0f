"""A job's events: numbered without gaps, append only, written only under the newest epoch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from s2d.events import EventType, NewEvent
from s2d.store.database import db_now
from s2d.store.tables import EventRow, JobRow


class LeaseLost(Exception):
    """Another claim has a newer epoch: this writer must stop, and nothing of the write was kept."""


def append(session: Session, job_id: str, epoch: int | None, events: Sequence[NewEvent]) -> int:
    """Append in order; returns the last number. `epoch` None: the API's own events, which no lease guards.

    Raises:
        LeaseLost: the job has moved on to another epoch.
    """
    query = update(JobRow).where(JobRow.id == job_id)
    if epoch is not None:
        query = query.where(JobRow.epoch == epoch)
    numbered = query.values(last_seq=JobRow.last_seq + len(events)).returning(JobRow.last_seq, JobRow.epoch)
    row = session.execute(numbered).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    first = row.last_seq - len(events) + 1
    session.add_all(
        EventRow(job_id=job_id, seq=first + i, epoch=row.epoch, created_at=db_now(), **_columns(event))
        for i, event in enumerate(events)
    )
    session.flush()
    return int(row.last_seq)


def _columns(event: NewEvent) -> dict[str, Any]:
    # The time of an event is the database's, so that events of several hosts are in one order.
    return event.model_dump(exclude={"at"}) | {"message": event.message[:4000]}


def since(session: Session, job_id: str, after: int, limit: int) -> Sequence[EventRow]:
    """Up to `limit` events with a number greater than `after`, oldest first."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.seq > after)
    return session.scalars(query.order_by(EventRow.seq).limit(limit)).all()


def metrics_at(session: Session, job_id: str, steps: Collection[int]) -> dict[tuple[str | None, int | None], Any]:
    """The metrics of these steps by (stage, step); the newest where a resumed stage went through a step again."""
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.type == "metrics", EventRow.step.in_(steps))
    return {(row.stage, row.step): row.data["metrics"] for row in session.scalars(query.order_by(EventRow.seq))}


def reached(session: Session, job_id: str) -> int:
    """Grows when a job gets further than it has been before: a stage, a checkpoint or a piece of work that was never
    told of. What a resumed stage tells again does not count."""
    what = (EventRow.stage, EventRow.type, EventRow.step, EventRow.message)
    kinds: tuple[EventType, ...] = ("stage", "checkpoint", "progress")
    told = select(*what).where(EventRow.job_id == job_id, EventRow.type.in_(kinds)).distinct().subquery()
    return session.scalars(select(func.count()).select_from(told)).one()


def latest(
    session: Session, job_id: str, *, before: int | None, limit: int, kind: EventType | None = None
) -> tuple[Sequence[EventRow], bool]:
    """Up to `limit` events with a number less than `before`, newest first, and whether there are older ones.

    Args:
        before: None: from the end.
        kind: only events of this type.
    """
    query = select(EventRow).where(EventRow.job_id == job_id)
    if before is not None:
        query = query.where(EventRow.seq < before)
    if kind is not None:
        query = query.where(EventRow.type == kind)
    rows = session.scalars(query.order_by(EventRow.seq.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit
