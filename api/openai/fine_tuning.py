"""Fine-tuning jobs with OpenAI's addresses: the same jobs as under /v1/jobs, see docs/openai.md."""

from __future__ import annotations

import re
from typing import Annotated, Any, Generic, Literal, Self, TypeVar

from fastapi import APIRouter, Header, Request, Response
from pydantic import BaseModel, Field

from api.conditions import NOT_MODIFIED, IfMatch, IfNoneMatch, as_known, etag
from api.deps import ContextDep
from api.native.snapshots import Snapshots, SnapshotsDep
from api.openai.fine_tuning_job import FineTuningJob, FineTuningRequest, params_as_sent
from api.schemas import After, Id, IdempotencyKey, Limit
from s2d.errors import InvalidRequest
from s2d.services import fine_tuning, jobs
from s2d.services.context import Context
from s2d.services.fine_tuning import Checkpoint
from s2d.store.jobs import version
from s2d.store.tables import EventRow, JobRow

router = APIRouter(prefix="/fine_tuning/jobs", tags=["fine_tuning"])

Item = TypeVar("Item")
_FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
#: FastAPI knows no such parameter.
_METADATA = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}},
    "description": "`metadata[k]=v`: only jobs that have this; `metadata=null`: only those without any.",
}


class CursorPage(BaseModel, Generic[Item]):
    """Newest first. The next page is the one `after` the last item's id, while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class EventDetails(BaseModel):
    seq: int
    type: str = Field(description="As in `GET /v1/jobs/{id}/events`.")
    stage: str | None
    step: int | None


class FineTuningEvent(BaseModel):
    """What happened in a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]
    s2d: EventDetails

    @classmethod
    def of(cls, row: EventRow) -> Self:
        return cls(
            id=_id("ftevent", row.job_id, row.seq),
            created_at=int(row.created_at),
            level=row.level,
            message=row.message or f"{row.type} of {row.stage}, step {row.step}",
            type="metrics" if row.type == "metrics" else "message",
            data=row.data,
            s2d=EventDetails(seq=row.seq, type=row.type, stage=row.stage, step=row.step),
        )


class CheckpointMetrics(BaseModel):
    step: int
    train_loss: float | None


class FineTuningCheckpoint(BaseModel):
    """What a job resumes from. It is not served, and goes when its stage has ended."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str = Field(description="Stage and step; no model to ask.")
    fine_tuning_job_id: str
    step_number: int = Field(description="Within its stage.")
    metrics: CheckpointMetrics

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        row, step = checkpoint.event, checkpoint.event.step or 0
        return cls(
            id=_id("ftckpt", row.job_id, row.seq),
            created_at=int(row.created_at),
            fine_tuned_model_checkpoint=f"{row.job_id}:{row.stage}:step-{step}",
            fine_tuning_job_id=row.job_id,
            step_number=step,
            metrics=CheckpointMetrics(step=step, train_loss=checkpoint.metrics.get("loss")),
        )


@router.post("")
def create(
    ctx: ContextDep,
    body: FineTuningRequest,
    response: Response,
    idempotency_key: IdempotencyKey = None,
    x_stainless_retry_count: Annotated[
        str, Header(description="How often the client has sent this before; then it gets the job of the first time.")
    ] = "0",
) -> FineTuningJob:
    """Make the plan and queue its job. `model` is the student; the teacher and all else of a plan's request is in
    `s2d`. Follow it here or at `GET /v1/jobs/{id}`: it is one job."""
    again = x_stainless_retry_count.isdecimal() and int(x_stainless_retry_count[:9]) > 0
    with params_as_sent():
        made = fine_tuning.create(
            ctx,
            body.s2d,
            body.kept(),
            grader=body.method.reinforcement.grader if body.method else None,
            idempotency_key=idempotency_key,
            again=again,
        )
    response.headers["etag"] = etag(version(made.job))
    return FineTuningJob.of(made)


@router.get("", openapi_extra={"parameters": [_METADATA]})
def list_jobs(ctx: ContextDep, request: Request, after: After = None, limit: Limit = 20) -> CursorPage[FineTuningJob]:
    """The jobs, newest first, those made at /v1/jobs included."""
    query = request.query_params
    metadata = {match[1]: query[name] for name in query if (match := _FILTER.fullmatch(name))}
    without = query.get("metadata") == "null"
    rows, more = fine_tuning.list_page(ctx, after=after, limit=limit, metadata=metadata, without_metadata=without)
    return CursorPage(data=[FineTuningJob.of(row) for row in rows], has_more=more)


@router.get("/{job_id}", response_model=FineTuningJob, responses=NOT_MODIFIED)
def retrieve(ctx: ContextDep, job_id: Id, if_none_match: IfNoneMatch = None) -> Response:
    """One job. Its ETag is that of `GET /v1/jobs/{id}`, and does not change with the mere time that is left."""
    found = fine_tuning.get(ctx, job_id)
    return as_known(FineTuningJob.of(found).model_dump_json().encode(), version(found.job), if_none_match)


@router.post("/{job_id}/cancel")
def cancel(
    ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch
) -> FineTuningJob:
    """Cancel a job: at once while it is queued, else as soon as its worker has stopped. Asking again is harmless."""
    return _changed(ctx, snapshots, response, jobs.cancel(ctx, job_id, if_match))


@router.post("/{job_id}/pause")
def pause(ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch) -> FineTuningJob:
    """Hold a job: at once while it is queued, else as soon as its stage has saved a checkpoint and stopped."""
    return _changed(ctx, snapshots, response, jobs.pause(ctx, job_id, if_match))


@router.post("/{job_id}/resume")
def resume(
    ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch
) -> FineTuningJob:
    """Queue a paused, failed or cancelled job again. It goes on from its last whole checkpoint."""
    return _changed(ctx, snapshots, response, jobs.resume(ctx, job_id, if_match))


def _changed(ctx: Context, snapshots: Snapshots, response: Response, row: JobRow) -> FineTuningJob:
    snapshots.forget(ctx, row.id)
    response.headers["etag"] = etag(version(row))
    return FineTuningJob.of(fine_tuning.seen(ctx, row))


@router.get("/{job_id}/events")
def list_events(ctx: ContextDep, job_id: Id, after: After = None, limit: Limit = 20) -> CursorPage[FineTuningEvent]:
    """What happened in it, newest first. `GET /v1/jobs/{id}/events` has it as a stream, oldest first."""
    before = _seq("ftevent", job_id, after)
    rows, more = jobs.latest_events(ctx, job_id, before=before, limit=limit)
    return CursorPage(data=[FineTuningEvent.of(row) for row in rows], has_more=more)


@router.get("/{job_id}/checkpoints")
def list_checkpoints(
    ctx: ContextDep, job_id: Id, after: After = None, limit: Limit = 10
) -> CursorPage[FineTuningCheckpoint]:
    """The checkpoints that its stages have written, newest first."""
    rows, more = fine_tuning.checkpoints(ctx, job_id, before=_seq("ftckpt", job_id, after), limit=limit)
    return CursorPage(data=[FineTuningCheckpoint.of(row) for row in rows], has_more=more)


def _id(kind: str, job_id: str, seq: int) -> str:
    return f"{kind}_{job_id.removeprefix('job_')}_{seq}"


def _seq(kind: str, job_id: str, cursor: str | None) -> int | None:
    """The number of the event that the cursor names. Raises InvalidRequest for one that is none of this job's."""
    if cursor is None:
        return None
    seq = cursor.removeprefix(_id(kind, job_id, 0)[:-1])
    if seq == cursor or not re.fullmatch("[0-9]{1,9}", seq):
        raise InvalidRequest(f"The cursor {cursor!r} names nothing here.", code="invalid_cursor", param="after")
    return int(seq)
