"""Jobs as a client of the OpenAI surface makes and sees them: the native services' own, under other names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from s2d.errors import InvalidRequest
from s2d.plan.request import PlanRequest
from s2d.services import jobs as native
from s2d.services import plans as planning
from s2d.services.context import Context
from s2d.services.graders import Multi, StringCheck, Verify, verifier_for
from s2d.services.jobs import Order
from s2d.store import events, jobs, plans
from s2d.store.plans import Summary
from s2d.store.repeats import Sending
from s2d.store.tables import EventRow, JobRow

_SCOPE = "fine_tuning"
#: Rows that a filter looks at in one go.
_BATCH = 200


class Seen(NamedTuple):
    """A job, and what its plan is about."""

    job: JobRow
    plan: Summary


class Checkpoint(NamedTuple):
    """The event that told of it, and the metrics of its step."""

    event: EventRow
    metrics: Mapping[str, float]


def create(
    ctx: Context,
    request: PlanRequest,
    sent: dict[str, Any],
    *,
    grader: StringCheck | Verify | Multi | None = None,
    idempotency_key: str | None = None,
    again: bool = False,
) -> Seen:
    """Make the plan and queue its job.

    Args:
        request: names a training file.
        sent: the whole body, to be kept with the job.
        grader: takes the place of the request's verifier.
        again: the client says that it sends the request once more. Without a key, it then gets the job of the first.

    Raises:
        InvalidRequest: the grader is none that a job can use, or there is a verifier beside it.
        InvalidPlan, IncompatiblePair, ModelRefused, NotFound, Conflict: see `plans.create` and `jobs.create`.
    """
    sending = Sending(_SCOPE, _fingerprint(sent), again)
    plan = planning.create(ctx, _graded(request, grader))
    order = Order(plan.id, str(request.training_file), request=sent)
    job = native.create(
        ctx, order, idempotency_key=idempotency_key, sending=sending if idempotency_key is None else None
    )
    return seen(ctx, job)


def _fingerprint(sent: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


def _graded(request: PlanRequest, grader: StringCheck | Verify | Multi | None) -> PlanRequest:
    if grader is None:
        return request
    if "verifier" in request.model_fields_set:
        raise InvalidRequest("The verifier and the method's grader say the same: leave one out.", param="s2d.verifier")
    return request.model_copy(update={"verifier": verifier_for(grader)})


def seen(ctx: Context, job: JobRow) -> Seen:
    with ctx.db.read() as session:
        return _seen(session, [job])[0]


def get(ctx: Context, job_id: str) -> Seen:
    """Raises NotFound."""
    with ctx.db.read() as session:
        return _seen(session, [jobs.get(session, job_id)])[0]


def list_page(
    ctx: Context, *, after: str | None, limit: int, metadata: Mapping[str, str] | None, without_metadata: bool
) -> tuple[list[Seen], bool]:
    """Newest first, those made natively included.

    Args:
        metadata: only jobs that have all of these.
        without_metadata: only jobs that have none.
    """
    with ctx.db.read() as session:
        if metadata or without_metadata:
            rows, more = _filtered(session, after, limit, metadata if metadata else None)
        else:
            rows, more = jobs.list_page(session, after=after, limit=limit)
        return _seen(session, rows), more


def _filtered(
    session: Session, after: str | None, limit: int, metadata: Mapping[str, str] | None
) -> tuple[Sequence[JobRow], bool]:
    """Looked at one by one: any text may be a key, and the databases quote keys in a path each in their own way."""
    found: list[JobRow] = []
    more = True
    while more and len(found) <= limit:
        rows, more = jobs.list_page(session, after=after, limit=_BATCH)
        found += [row for row in rows if _fits((row.request or {}).get("metadata"), metadata)]
        after = rows[-1].id if rows else after
    return found[:limit], len(found) > limit


def _fits(own: Mapping[str, str] | None, wanted: Mapping[str, str] | None) -> bool:
    if wanted is None:
        return own is None
    return own is not None and wanted.items() <= own.items()


def _seen(session: Session, rows: Sequence[JobRow]) -> list[Seen]:
    summaries = plans.summaries(session, {row.plan_id for row in rows})
    return [Seen(row, summaries[row.plan_id]) for row in rows]


def checkpoints(ctx: Context, job_id: str, *, before: int | None, limit: int) -> tuple[list[Checkpoint], bool]:
    """Those that a job has written, newest first; see `s2d.store.events.latest`. Raises NotFound."""
    rows, more = native.latest_events(ctx, job_id, before=before, limit=limit, kind="checkpoint")
    with ctx.db.read() as session:
        metrics = events.metrics_at(session, job_id, {row.step for row in rows if row.step is not None})
    return [Checkpoint(row, metrics.get((row.stage, row.step), {})) for row in rows], more
