"""A job's events: as pages, or as they happen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any, Literal, Self, cast

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.deps import ContextDep, TailsDep
from api.schemas import Accept, Id, Limit
from s2d.services import jobs
from s2d.services.context import Context
from s2d.services.tails import BATCH, Tails, Told
from s2d.store.states import JobState
from s2d.store.tables import EventRow

router = APIRouter(prefix="/jobs", tags=["jobs"])

#: A comment after so much silence keeps proxies from closing the connection.
HEARTBEAT_S = 15.0
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class JobEvent(BaseModel):
    """Something that happened in a job. `seq` counts from 1 without gaps."""

    object: Literal["job.event"] = "job.event"
    seq: int
    created_at: float = Field(description="Seconds since the epoch.")
    type: str = Field(description="state, stage, process, progress, metrics, message, checkpoint, gate or evaluation.")
    level: Literal["info", "warn", "error"]
    stage: str | None
    step: int | None
    message: str
    data: dict[str, Any]

    @classmethod
    def of(cls, row: EventRow) -> Self:
        return cls.model_validate(row, from_attributes=True)


class EventPage(BaseModel):
    """Oldest first. The next page is the one `after` the last event's `seq`, while `has_more`."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool


Seq = Annotated[int, Field(ge=0, lt=2**31)]


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def list_events(
    ctx: ContextDep,
    tails: TailsDep,
    job_id: Id,
    after: Annotated[Seq, Query(description="Only events with a greater `seq`.")] = 0,
    limit: Limit = 100,
    stream: Annotated[bool, Query(description="Does the same as `Accept: text/event-stream`.")] = False,
    last_event_id: Annotated[Seq | None, Header(description="Wins over `after` in a stream.")] = None,
    accept: Accept = "",
) -> Response:
    """The events of a job: a page, or server-sent events (`id` = seq, `event` = type, `data` = the event as JSON)
    from `Last-Event-ID` on until the job has ended, which a last `event: done` says."""
    if stream or "text/event-stream" in accept:
        # Here, so that a job that does not exist is still a 404.
        job = await run_in_threadpool(jobs.get, ctx, job_id)
        # Not beyond the last event: others follow the same tail.
        start = min(after if last_event_id is None else last_event_id, job.last_seq)
        return StreamingResponse(follow(ctx, tails, job_id, start), media_type="text/event-stream", headers=_HEADERS)
    rows, _ = await run_in_threadpool(jobs.events_since, ctx, job_id, after, limit + 1)
    page = EventPage(data=[JobEvent.of(row) for row in rows[:limit]], has_more=len(rows) > limit)
    return Response(page.model_dump_json(), media_type="application/json")


async def follow(ctx: Context, tails: Tails, job_id: str, after: int) -> AsyncIterator[bytes]:
    """Frames of server-sent events until the job has ended and all is told."""

    async def read(last: int) -> tuple[list[Told], JobState]:
        rows, job = await run_in_threadpool(jobs.events_since, ctx, job_id, last, BATCH)
        return [Told(row.seq, _frame(row)) for row in rows], cast(JobState, job.state)

    # Closed here and not when it is collected: the last follower's leaving ends the reading.
    async with aclosing(tails.follow(job_id, read, after, HEARTBEAT_S)) as following:
        async for told in following:
            if isinstance(told, bytes):
                yield told or b": still here\n\n"
            else:
                yield f'event: done\ndata: {{"state":"{told}"}}\n\n'.encode()


def _frame(row: EventRow) -> bytes:
    return f"id: {row.seq}\nevent: {row.type}\ndata: {JobEvent.of(row).model_dump_json()}\n\n".encode()
