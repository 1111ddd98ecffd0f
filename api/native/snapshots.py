"""Jobs as they were a moment ago, rendered: however many poll a job, it is read and written out once for them all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, NamedTuple, cast

from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from s2d.services import jobs
from s2d.services.context import Context
from s2d.store.jobs import version
from s2d.store.tables import JobRow

#: Seconds that a rendered job is given out. A change through this process shows at once.
FRESH_S = 0.25
_KEPT = 10_000


class Snapshot(NamedTuple):
    version: str
    body: bytes


class Snapshots:
    """Belongs to one event loop; only `forget` may be called from other threads."""

    def __init__(self, render: Callable[[JobRow], bytes]) -> None:
        self._render = render
        self._known: dict[tuple[str | None, str], tuple[asyncio.Future[Snapshot], float]] = {}

    async def of(self, ctx: Context, job_id: str) -> Snapshot:
        """The job as JSON. Raises NotFound."""
        key = (ctx.db.tenant, job_id)
        reading, until = self._known.get(key, (None, 0.0))
        if reading is None or time.monotonic() >= until:
            reading = asyncio.ensure_future(run_in_threadpool(self._read, ctx, job_id))
            reading.add_done_callback(lambda done: self._drop_failed(key, done))
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[key] = reading, time.monotonic() + FRESH_S
        # Shielded: one client that leaves must not take the others' answer with it.
        return await asyncio.shield(reading)

    def forget(self, ctx: Context, job_id: str) -> None:
        """The job was changed through this process."""
        self._known.pop((ctx.db.tenant, job_id), None)

    def _read(self, ctx: Context, job_id: str) -> Snapshot:
        row = jobs.get(ctx, job_id)
        return Snapshot(version(row), self._render(row))

    def _drop_failed(self, key: tuple[str | None, str], done: asyncio.Future[Snapshot]) -> None:
        # Read, so that an error that nobody waited for is not reported as forgotten.
        if done.cancelled() or done.exception() is not None:
            known = self._known.get(key)
            if known is not None and known[0] is done:
                del self._known[key]


async def _snapshots(request: Request) -> Snapshots:
    return cast(Snapshots, request.app.state.snapshots)


SnapshotsDep = Annotated[Snapshots, Depends(_snapshots)]
