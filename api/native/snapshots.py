"""Jobs as they were a moment ago, rendered: however many poll a job, it is read and written out once for them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple, cast

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from s2d.recent import Recent
from s2d.services import jobs
from s2d.services.context import Context
from s2d.store.jobs import version
from s2d.store.tables import JobRow

#: Seconds that a rendered job is given out. A change through this process shows at once.
FRESH_S = 0.25


class Snapshot(NamedTuple):
    version: str
    body: bytes


class Snapshots:
    """Belongs to one event loop; only `forget` may be called from other threads."""

    def __init__(self, render: Callable[[JobRow], bytes]) -> None:
        self._render = render
        self._recent = Recent[tuple[str | None, str], Snapshot]()

    async def of(self, ctx: Context, job_id: str) -> Snapshot:
        """The job as JSON. Raises NotFound."""
        key = (ctx.db.tenant, job_id)
        return await self._recent.get(key, FRESH_S, lambda: run_in_threadpool(self._read, ctx, job_id))

    def forget(self, ctx: Context, job_id: str) -> None:
        """The job was changed through this process."""
        self._recent.forget((ctx.db.tenant, job_id))

    def _read(self, ctx: Context, job_id: str) -> Snapshot:
        row = jobs.get(ctx, job_id)
        return Snapshot(version(row), self._render(row))


async def _snapshots(request: Request) -> Snapshots:
    return cast(Snapshots, request.app.state.snapshots)


SnapshotsDep = Annotated[Snapshots, Depends(_snapshots)]
