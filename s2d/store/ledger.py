"""The label ledger: which stage of which arm of a job spent each label. One arm, one label, one use (decision 5)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import NamedTuple

from sqlalchemy import func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from s2d.errors import Conflict
from s2d.plan.graph import Account
from s2d.store import jobs
from s2d.store.jobs import Claim
from s2d.store.tables import LedgerRow

_CHUNK = 5000


class Spending(NamedTuple):
    """How many labels a stage spent for one use."""

    arm: str
    stage: str
    role: str
    labels: int


class Use(NamedTuple):
    """A stage that spent a label, and what for."""

    stage: str
    role: str


def spend(session: Session, claim: Claim, account: Account, role: str, labels: Sequence[str]) -> None:
    """Record these labels as the stage's; asking again for the same stage changes nothing.

    Raises:
        Conflict: another stage of the arm has one of the labels already.
        LeaseLost: the job is no longer this claim's.
    """
    jobs.hold(session, claim)
    query = select(LedgerRow.label_id, LedgerRow.stage).where(
        LedgerRow.job_id == claim.job_id, LedgerRow.arm == account.arm
    )
    known = dict(session.execute(query).all())
    fresh = iter(_fresh(known, account, labels))
    try:
        while chunk := list(islice(fresh, _CHUNK)):
            same = {"job_id": claim.job_id, "role": role, **account._asdict()}
            session.execute(insert(LedgerRow), [{**same, "label_id": label} for label in chunk])
    except IntegrityError as err:
        raise Conflict(f"A label of {role!r} was spent at the same moment elsewhere.", code="label_spent") from err


def _fresh(known: dict[str, str], account: Account, labels: Iterable[str]) -> Iterable[str]:
    for label in labels:
        owner = known.get(label)
        if owner is None:
            known[label] = account.stage
            yield label
        elif owner != account.stage:
            raise Conflict(
                f"Label {label} was spent by {owner} and cannot be spent by {account.stage}.", code="label_spent"
            )


def spent(session: Session, job_id: str) -> list[Spending]:
    """Labels per arm, stage and use."""
    columns = (LedgerRow.arm, LedgerRow.stage, LedgerRow.role)
    query = select(*columns, func.count()).where(LedgerRow.job_id == job_id).group_by(*columns).order_by(*columns)
    return [Spending(*row) for row in session.execute(query)]


def uses(session: Session, job_id: str, label: str) -> list[Use]:
    """Who has spent one label, in every arm."""
    query = select(LedgerRow.stage, LedgerRow.role).where(LedgerRow.job_id == job_id, LedgerRow.label_id == label)
    return [Use(*row) for row in session.execute(query.order_by(LedgerRow.arm))]
