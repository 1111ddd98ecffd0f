"""Jobs: a plan applied to a file. Creating one is a single transaction; running it is the worker's business."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from s2d.errors import InvalidPlan, NotFound
from s2d.events import EventType
from s2d.plan.document import Plan, read_plan
from s2d.plan.service import check_against_data
from s2d.services.context import Context
from s2d.services.once import once
from s2d.store import events, files, jobs, ledger, plans, repeats
from s2d.store.ledger import Spending
from s2d.store.repeats import Sending
from s2d.store.states import JobState
from s2d.store.tables import EventRow, FileRow, JobRow
from s2d.store.versions import Expected

_SCOPE = "jobs"


@dataclass(frozen=True)
class Order:
    """What a job is to be. `request`: what a client of the OpenAI surface sent, to be shown to it again."""

    plan_id: str
    file_id: str
    name: str | None = None
    request: dict[str, Any] | None = None

    def digest(self) -> str:
        """Equal for equal orders. A request says more than the plan that it was made into, so it alone counts."""
        whole = (self.plan_id, self.file_id, self.name)
        said = repr(whole) if self.request is None else json.dumps(self.request, sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()


def create(ctx: Context, order: Order, *, idempotency_key: str | None = None, sending: Sending | None = None) -> JobRow:
    """Queue a job.

    Args:
        sending: of a request that its client may send again without a key.

    Raises:
        NotFound: no such plan or file.
        InvalidPlan: the file is not the one that the plan was made for, or has too few rows.
        Conflict: the idempotency key was used for another request.
    """
    # A request with a key says itself when it is another one.
    resent = sending if idempotency_key is None else None
    make = partial(_create, order, sending, resent)
    return once(ctx, _SCOPE, idempotency_key, order.digest(), make=make, again=jobs.get)


def _create(order: Order, sending: Sending | None, resent: Sending | None, session: Session) -> JobRow:
    known = repeats.recall(session, resent) if resent is not None else None
    if known is not None:
        return jobs.get(session, known)
    plan = read_plan(plans.get(session, order.plan_id).document)
    check_file(plan, files.get(session, order.file_id, param="training_file"))
    row = jobs.create(session, plan_id=order.plan_id, file_id=order.file_id, name=order.name, request=order.request)
    if sending is not None:
        repeats.remember(session, sending, row.id)
    return row


def check_file(plan: Plan, file: FileRow) -> None:
    """Raises InvalidPlan when this plan cannot run on this file."""
    if plan.data.file_sha256 not in (None, file.sha256):
        raise InvalidPlan(
            f"Plan {plan.id} was made for another file (sha256 {plan.data.file_sha256}), not for {file.id}. "
            "Make a plan for this file.",
            code="plan_file_mismatch",
            param="training_file",
        )
    check_against_data(plan, file.labeled, file.unlabeled)


def get(ctx: Context, job_id: str) -> JobRow:
    """Raises NotFound."""
    with ctx.db.read() as session:
        return jobs.get(session, job_id)


def list_page(ctx: Context, *, after: str | None, limit: int, state: JobState | None) -> tuple[Sequence[JobRow], bool]:
    with ctx.db.read() as session:
        return jobs.list_page(session, after=after, limit=limit, state=state)


def cancel(ctx: Context, job_id: str, expected: Expected = None) -> JobRow:
    """Raises NotFound, Changed, and Conflict when the job has already ended otherwise."""
    with ctx.db.begin() as session:
        return jobs.request_cancel(session, job_id, expected)


def pause(ctx: Context, job_id: str, expected: Expected = None) -> JobRow:
    """Raises NotFound, Changed, and Conflict when the job has ended."""
    with ctx.db.begin() as session:
        return jobs.request_pause(session, job_id, expected)


def resume(ctx: Context, job_id: str, expected: Expected = None) -> JobRow:
    """Raises NotFound, Changed, and Conflict when the job has succeeded or is still being stopped."""
    with ctx.db.begin() as session:
        return jobs.request_resume(session, job_id, expected)


def events_since(ctx: Context, job_id: str, after: int, limit: int) -> tuple[Sequence[EventRow], JobRow]:
    """Events after the number `after`, and the job as it was when they were read."""
    with ctx.db.read() as session:
        job = jobs.get(session, job_id)
        return events.since(session, job_id, after, limit), job


def latest_events(
    ctx: Context, job_id: str, *, before: int | None, limit: int, kind: EventType | None = None
) -> tuple[Sequence[EventRow], bool]:
    """Newest first, see `s2d.store.events.latest`. Raises NotFound."""
    with ctx.db.read() as session:
        jobs.get(session, job_id)
        return events.latest(session, job_id, before=before, limit=limit, kind=kind)


def labels(ctx: Context, job_id: str) -> list[Spending]:
    """Who has spent how many labels so far. Raises NotFound."""
    with ctx.db.read() as session:
        jobs.get(session, job_id)
        return ledger.spent(session, job_id)


def report_path(ctx: Context, job_id: str, name: str = "report.json") -> Path:
    """The report of a job that has one.

    Raises:
        NotFound: no such job, or it has not come to its report yet.
    """
    job = get(ctx, job_id)
    path = ctx.settings.job_dir(job_id) / "report" / name
    if not path.is_file():
        raise NotFound(
            f"Job {job_id!r} ({job.state}) has no {name}; it is written when a job succeeds or fails.",
            code="report_not_ready",
        )
    return path
