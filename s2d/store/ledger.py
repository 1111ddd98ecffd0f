"""The label ledger: which label of a job has which use. One label, one use (design decision 5)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from s2d.errors import Conflict
from s2d.store.tables import LedgerRow

_CHUNK = 5000


def spend(session: Session, job_id: str, role: str, label_ids: Iterable[str]) -> None:
    """Record that these labels are for `role` in this job; asking again for the same use changes nothing.

    Raises:
        Conflict: a label already has another use in this job.
    """
    known = dict(session.execute(select(LedgerRow.label_id, LedgerRow.role).where(LedgerRow.job_id == job_id)).all())
    fresh = iter(_fresh(known, role, label_ids))
    try:
        while chunk := list(islice(fresh, _CHUNK)):
            rows = [{"job_id": job_id, "label_id": label, "role": role} for label in chunk]
            session.execute(insert(LedgerRow), rows)
    except IntegrityError as err:
        raise Conflict(f"A label of {role!r} was spent at the same moment elsewhere.", code="label_spent") from err


def _fresh(known: dict[str, str], role: str, label_ids: Iterable[str]) -> Iterable[str]:
    for label in label_ids:
        used = known.get(label)
        if used is None:
            known[label] = role
            yield label
        elif used != role:
            raise Conflict(f"Label {label} is spent on {used!r} and cannot be used for {role!r}.", code="label_spent")


def spent(session: Session, job_id: str) -> dict[str, int]:
    """Labels per use."""
    query = select(LedgerRow.role, func.count()).where(LedgerRow.job_id == job_id).group_by(LedgerRow.role)
    return dict(session.execute(query).all())
