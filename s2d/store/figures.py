"""Figures of the whole service for whoever watches it: one cheap query each, counted and aged by the database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from s2d.store.database import db_now
from s2d.store.outbox import due
from s2d.store.states import HELD, STATES, JobState
from s2d.store.tables import EventRow, JobRow, OutboxRow, StudentRow


class Figures(NamedTuple):
    jobs: Mapping[JobState, int]
    """Every state, those without a job included."""
    oldest_queued_s: float
    """How long the job that has waited longest for a worker has done so; 0 when none waits."""
    leases_expired: int
    """Jobs whose worker has not been heard of in time and that no worker has queued again yet."""
    outbox_unsent: int
    """Messages that the broker should have had."""
    students: int


def read(session: Session) -> Figures:
    return Figures(
        jobs=_jobs(session),
        oldest_queued_s=_oldest_queued_s(session),
        leases_expired=_count(
            session, select(JobRow.id).where(JobRow.state.in_(HELD), JobRow.lease_expires_at < db_now())
        ),
        outbox_unsent=_count(session, select(OutboxRow.id).join(JobRow).where(OutboxRow.sent_at.is_(None), due())),
        students=_count(session, select(StudentRow.id)),
    )


def _jobs(session: Session) -> dict[JobState, int]:
    rows = session.execute(select(JobRow.state, func.count().label("jobs")).group_by(JobRow.state))
    found = {row.state: row.jobs for row in rows}
    return {state: found.get(state, 0) for state in STATES}


def _oldest_queued_s(session: Session) -> float:
    """From the event that queued the job, which is its last one while it waits: not from its creation, as a job that
    was paused for days has not waited for days. One that must wait after a lost worker waits for no worker."""
    last = (EventRow.job_id == JobRow.id) & (EventRow.seq == JobRow.last_seq)
    query = select(func.min(EventRow.created_at)).join(JobRow, last).where(JobRow.state == "queued", due())
    since = session.execute(query).scalar_one()
    return 0.0 if since is None else max(0.0, float(session.execute(select(db_now())).scalar_one()) - since)


def _count(session: Session, rows: Select[Any]) -> int:
    return session.execute(select(func.count()).select_from(rows.subquery())).scalar_one()
