"""Completions: a student's id and a request in, its server's answer out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2d.errors import NotFound
from s2d.recent import Recent
from s2d.serve import CHAT, Admission, Asked, Endpoint, Forwarder, Lease, ServeSettings, StudentServers, checked
from s2d.services import students
from s2d.services.context import Context
from s2d.services.keys import TRUST_ALONE_S
from s2d.settings import Settings
from s2d.store.database import DATABASE_AWAY

#: Where a student lies is believed for so long, so that most questions ask no database.
TRUST_S = 5.0


@dataclass(frozen=True)
class Chat:
    """The running student servers and the way to them; belongs to one event loop."""

    servers: StudentServers
    forwarder: Forwarder
    admission: Admission
    known: Recent[tuple[str | None, str], Path] = field(default_factory=Recent)

    async def close(self) -> None:
        """Stops every student server; up to some ten seconds each."""
        await asyncio.to_thread(self.servers.close)

    def retire(self, ctx: Context, student_id: str) -> None:
        """The tenant's student is gone: nobody new is answered, and its server ends with its last answer."""
        self.known.forget((ctx.db.tenant, student_id))
        self.servers.retire(student_id)

    async def path_of(self, ctx: Context, student_id: str) -> Path:
        """Where the tenant's student lies. Raises NotFound."""

        async def look() -> Path:
            return Path((await asyncio.to_thread(students.get, ctx, student_id)).path)

        key = (ctx.db.tenant, student_id)
        try:
            return await self.known.get(key, TRUST_S, look)
        except NotFound:
            self.known.forget(key)
            raise
        except DATABASE_AWAY:
            known = self.known.known(key, TRUST_ALONE_S)
            if known is None:
                raise
            return known


def open_chat(settings: Settings) -> Chat:
    """Starts nothing yet: a student's server starts with its first request."""
    serve = ServeSettings(
        engine=settings.serve_engine,
        vllm_python=settings.vllm_python,
        remote_url=settings.vllm_url,
        remote_key=settings.vllm_api_key,
        max_servers=settings.serve_max_servers,
        memory_gib=settings.serve_memory_gib,
        idle_s=settings.serve_idle_s,
        first_token_timeout_s=settings.serve_first_token_s,
        silence_timeout_s=settings.serve_silence_s,
        answer_timeout_s=settings.serve_answer_s,
        log_dir=settings.log_dir / "students",
    )
    return Chat(StudentServers(serve), Forwarder(serve.limits), Admission(settings.serve_max_requests))


async def complete(ctx: Context, chat: Chat, student_id: str, body: dict[str, Any]) -> dict[str, Any]:
    """The whole answer to a chat, parsed. Raises as `answer` does, and InvalidRequest for a body that is none."""
    whole: dict[str, Any] = json.loads(await answer(ctx, chat, student_id, checked(body)))
    return whole


async def answer(ctx: Context, chat: Chat, student_id: str, asked: Asked, endpoint: Endpoint = CHAT) -> bytes:
    """The whole answer as JSON.

    Raises:
        NotFound: no such student.
        TooManyRequests: the student has as many requests as it may.
        InvalidRequest, Unavailable, StudentFailed: see `s2d.serve.Forwarder.complete`.
    """
    return await chat.forwarder.complete(await _lease(ctx, chat, student_id), asked, endpoint)


async def stream(
    ctx: Context, chat: Chat, student_id: str, asked: Asked, endpoint: Endpoint = CHAT
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events. Raises as `answer` does, before the first event."""
    return await chat.forwarder.stream(await _lease(ctx, chat, student_id), asked, endpoint)


async def _lease(ctx: Context, chat: Chat, student_id: str) -> Lease:
    path = await chat.path_of(ctx, student_id)
    leave = chat.admission.enter(student_id)
    try:
        lease = chat.servers.running_lease(student_id, path) or await chat.servers.acquire_async(student_id, path)
    except BaseException:
        leave()
        raise
    return lease.also(leave)
