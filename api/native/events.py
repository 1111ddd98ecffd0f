"""A job's events: as pages, or as they happen."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Header, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from api.deps import ContextDep
from api.schemas import Accept, Id, Limit
from s2d.services import jobs
from s2d.services.context import Context
from s2d.store.states import FINAL
from s2d.store.tables import EventRow

router = APIRouter(prefix="/jobs", tags=["jobs"])

POLL_S = 0.5
#: A comment after so much silence keeps proxies from closing the connection.
HEARTBEAT_S = 15.0
_BATCH = 500
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


class JobEvent(BaseModel):
    """Something that happened in a job. `seq` counts from 1 without gaps."""

    object: Literal["job.event"] = "job.event"
    seq: int
    created_at: float = Field(description="Seconds since the epoch.")
    type: str = Field(description="state, stage, progress, metrics, message, checkpoint, gate or evaluation.")
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
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def list_events(
    ctx: ContextDep,
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
        await run_in_threadpool(jobs.get, ctx, job_id)
        start = after if last_event_id is None else last_event_id
        return StreamingResponse(follow(ctx, job_id, start), media_type="text/event-stream", headers=_HEADERS)
    rows, _ = await run_in_threadpool(jobs.events_since, ctx, job_id, after, limit + 1)
    page = EventPage(data=[JobEvent.of(row) for row in rows[:limit]], has_more=len(rows) > limit)
    return Response(page.model_dump_json(), media_type="application/json")


async def follow(ctx: Context, job_id: str, after: int) -> AsyncIterator[str]:
    """Frames of server-sent events until the job has ended and all is told. Holds a thread only while it reads."""
    told = time.monotonic()
    while True:
        rows, job = await run_in_threadpool(jobs.events_since, ctx, job_id, after, _BATCH)
        for row in rows:
            yield f"id: {row.seq}\nevent: {row.type}\ndata: {JobEvent.of(row).model_dump_json()}\n\n"
            after, told = row.seq, time.monotonic()
        if len(rows) == _BATCH:
            continue
        if job.state in FINAL:
            yield f'event: done\ndata: {{"state":"{job.state}"}}\n\n'
            return
        if time.monotonic() - told >= HEARTBEAT_S:
            yield ": still here\n\n"
            told = time.monotonic()
        await asyncio.sleep(POLL_S)
