"""Chat completions: a student's id and a request in, its server's answer out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2d.serve import Admission, Forwarder, Lease, ServeSettings, StudentServers
from s2d.services import students
from s2d.services.context import Context
from s2d.settings import Settings


@dataclass(frozen=True)
class Chat:
    """The running student servers and the way to them; belongs to one event loop."""

    servers: StudentServers
    forwarder: Forwarder
    admission: Admission

    async def close(self) -> None:
        """Stops every student server; up to some ten seconds each."""
        await self.forwarder.aclose()
        await asyncio.to_thread(self.servers.close)


def open_chat(settings: Settings) -> Chat:
    """Starts nothing yet: a student's server starts with its first request."""
    serve = ServeSettings(
        engine=settings.serve_engine,
        vllm_python=settings.vllm_python,
        remote_url=settings.vllm_url,
        max_servers=settings.serve_max_servers,
        idle_s=settings.serve_idle_s,
        log_dir=settings.log_dir / "students",
    )
    return Chat(StudentServers(serve), Forwarder(serve.answer_timeout_s), Admission(settings.serve_max_requests))


async def complete(ctx: Context, chat: Chat, student_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer.

    Raises:
        NotFound: no such student.
        TooManyRequests: the student has as many requests as it may.
        InvalidRequest, Unavailable, StudentFailed: see `s2d.serve.Forwarder.complete`.
    """
    return await chat.forwarder.complete(await _lease(ctx, chat, student_id), body)


async def stream(ctx: Context, chat: Chat, student_id: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """The answer as server-sent events. Raises as `complete` does, before the first event."""
    return await chat.forwarder.stream(await _lease(ctx, chat, student_id), body)


async def _lease(ctx: Context, chat: Chat, student_id: str) -> Lease:
    row = await asyncio.to_thread(students.get, ctx, student_id)
    leave = chat.admission.enter(student_id)
    try:
        lease = await chat.servers.acquire_async(student_id, Path(row.path))
    except BaseException:
        leave()
        raise
    return lease.also(leave)
