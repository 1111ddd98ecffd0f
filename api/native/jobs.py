"""Jobs: a plan applied to a training file."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field, StringConstraints

from api.conditions import NOT_MODIFIED, IfMatch, IfNoneMatch, as_known, etag
from api.deps import ContextDep
from api.native.snapshots import Snapshots, SnapshotsDep
from api.schemas import MARKDOWN, Accept, After, Format, Id, IdempotencyKey, Limit, Page, RequestBody, wants_markdown
from s2d.errors import FAILURE_CODES
from s2d.services import jobs
from s2d.services.context import Context
from s2d.services.jobs import Order
from s2d.services.progress import EtaRange, Progress, StageProgress
from s2d.store.jobs import version
from s2d.store.states import FINAL, JobState
from s2d.store.tables import JobRow

router = APIRouter(prefix="/jobs", tags=["jobs"])


class JobRequest(RequestBody):
    plan: Id = Field(description="Id of the plan to carry out.")
    training_file: Id = Field(description="Id of the file to carry it out on.")
    name: Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00]*$")] | None = Field(
        default=None, description="For people."
    )


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    stage: str | None = None
    step: int | None = None
    advice: str | None = Field(default=None, description="What can be done about it.")
    log: list[str] = Field(default=[], description="The last lines that the stage wrote.")

    @classmethod
    def of(cls, stored: dict[str, Any]) -> Self:
        return cls.model_validate({"advice": FAILURE_CODES.get(stored["code"])} | stored)


class Job(BaseModel):
    """A job and how far it is. Times are seconds since the epoch."""

    id: str
    object: Literal["job"] = "job"
    name: str | None
    plan: str
    training_file: str
    state: JobState
    attempt: int = Field(description="How often a worker has taken it up without handing it back.")
    created_at: float
    started_at: float | None
    finished_at: float | None
    current_stage: str | None
    step: int = Field(description="Steps done in the current stage.")
    steps: int = Field(description="Steps of the current stage.")
    metrics: dict[str, float | None] = Field(description="The latest ones.")
    eta_s: EtaRange | None = Field(description="Seconds until the job ends, while it runs.")
    stages: tuple[StageProgress, ...]
    student: str | None = Field(description="The model that it made, once it has succeeded.")
    error: JobError | None

    @classmethod
    def of(cls, row: JobRow) -> Self:
        progress = Progress.model_validate(row.progress)
        if row.state in FINAL:
            progress = progress.ended(row.state, row.finished_at)
        elif row.state == "paused":
            progress = progress.held()
        return cls(
            id=row.id,
            name=row.name,
            plan=row.plan_id,
            training_file=row.file_id,
            state=row.state,
            attempt=row.attempt,
            created_at=row.created_at,
            started_at=row.started_at,
            finished_at=row.finished_at,
            current_stage=progress.stage,
            step=progress.step,
            steps=progress.steps,
            metrics=progress.metrics,
            eta_s=progress.eta_s,
            stages=progress.stages,
            student=row.student_id,
            error=JobError.of(row.error) if row.error else None,
        )


def render(row: JobRow) -> bytes:
    return Job.of(row).model_dump_json().encode()


class SpentLabels(BaseModel):
    arm: str = Field(description="`workflow`, or the control whose account it is.")
    stage: str
    role: str = Field(description="What they were set aside for.")
    labels: int


class Labels(BaseModel):
    object: Literal["list"] = "list"
    data: list[SpentLabels]


@router.post("", status_code=202)
def create(ctx: ContextDep, body: JobRequest, response: Response, idempotency_key: IdempotencyKey = None) -> Job:
    """Queue a job. Follow it at `GET /v1/jobs/{id}` or `GET /v1/jobs/{id}/events`."""
    row = jobs.create(ctx, Order(body.plan, body.training_file, body.name), idempotency_key=idempotency_key)
    response.headers.update({"location": f"/v1/jobs/{row.id}", "etag": etag(version(row))})
    return Job.of(row)


@router.get("")
def list_jobs(ctx: ContextDep, after: After = None, limit: Limit = 20, state: JobState | None = None) -> Page[Job]:
    """The jobs, newest first."""
    rows, has_more = jobs.list_page(ctx, after=after, limit=limit, state=state)
    return Page[Job].of(rows, has_more, Job.of)


@router.get("/{job_id}", response_model=Job, responses=NOT_MODIFIED)
async def retrieve(ctx: ContextDep, snapshots: SnapshotsDep, job_id: Id, if_none_match: IfNoneMatch = None) -> Response:
    """One job, as it was at most a quarter of a second ago."""
    found = await snapshots.of(ctx, job_id)
    return as_known(found.body, found.version, if_none_match)


@router.post("/{job_id}/cancel", status_code=202)
def cancel(ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch) -> Job:
    """Cancel a job: at once while it is queued, else as soon as its worker has stopped. Asking again is harmless."""
    return _changed(ctx, snapshots, response, jobs.cancel(ctx, job_id, if_match))


@router.post("/{job_id}/pause", status_code=202)
def pause(ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch) -> Job:
    """Hold a job: at once while it is queued, else as soon as its stage has saved a checkpoint and stopped."""
    return _changed(ctx, snapshots, response, jobs.pause(ctx, job_id, if_match))


@router.post("/{job_id}/resume", status_code=202)
def resume(ctx: ContextDep, snapshots: SnapshotsDep, response: Response, job_id: Id, if_match: IfMatch) -> Job:
    """Queue a paused, failed or cancelled job again. It goes on from its last whole checkpoint."""
    return _changed(ctx, snapshots, response, jobs.resume(ctx, job_id, if_match))


def _changed(ctx: Context, snapshots: Snapshots, response: Response, row: JobRow) -> Job:
    snapshots.forget(ctx, row.id)
    response.headers["etag"] = etag(version(row))
    return Job.of(row)


@router.get("/{job_id}/labels")
def labels(ctx: ContextDep, job_id: Id) -> Labels:
    """Who has spent how many labels so far: the ledger, by arm, stage and use."""
    return Labels(data=[SpentLabels(**entry._asdict()) for entry in jobs.labels(ctx, job_id)])


@router.get(
    "/{job_id}/report",
    response_class=FileResponse,
    responses={
        200: {
            "description": "The report; its schema is in docs/report.md.",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/markdown": {}},
        }
    },
)
def report(ctx: ContextDep, job_id: Id, format: Format = None, accept: Accept = "") -> FileResponse:
    """What the job found: accuracies with intervals, labels spent, provenance. As JSON or as a page in Markdown."""
    if wants_markdown(format, accept):
        return FileResponse(jobs.report_path(ctx, job_id, "report.md"), media_type=MARKDOWN)
    return FileResponse(jobs.report_path(ctx, job_id), media_type="application/json")


@router.get(
    "/{job_id}/report/{picture}.png",
    response_class=FileResponse,
    responses={200: {"content": {"image/png": {}}, "description": "The picture."}},
)
def report_picture(
    ctx: ContextDep, job_id: Id, picture: Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,100}$")]
) -> FileResponse:
    """A picture of the report."""
    return FileResponse(jobs.report_path(ctx, job_id, f"{picture}.png"), media_type="image/png")
