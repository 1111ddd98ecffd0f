"""Carries chat completions to a leased student server and its answers back.

Nothing is sent twice: a request that failed half-way is the caller's to repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import httpx

from s2d.errors import S2DError, Unavailable
from s2d.serve.lease import Lease
from s2d.serve.reply import ChunkRewriter, error_event, filled, refusal
from s2d.serve.request import prepare

CHAT = "/v1/chat/completions"


class Forwarder:
    """One per event loop; `aclose` it. `answer_timeout_s` is the longest silence of a server that is accepted."""

    def __init__(self, answer_timeout_s: float) -> None:
        # No kept connections: servers come and go on changing ports, and connecting to loopback costs nothing.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(answer_timeout_s, connect=10)
        self._client = httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def complete(self, lease: Lease, body: dict[str, Any]) -> dict[str, Any]:
        """The whole answer. Releases the lease.

        Raises InvalidRequest (refused before or by the server), Unavailable (the server died, is overloaded or too
        slow) or StudentFailed.
        """
        with lease:
            request = await asyncio.to_thread(prepare, lease, body)
            try:
                reply = await self._client.post(lease.base_url + CHAT, json=request | {"stream": False})
            except httpx.TransportError as error:
                raise _lost(lease, error) from error
            if not reply.is_success:
                raise refusal(reply.status_code, reply.text, lease)
            return filled(reply.json(), lease, _kept_stop(lease, request))

    async def stream(self, lease: Lease, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. Releases the lease when the iterator ends, is closed or collected.

        Raises as `complete` does while nothing has been sent yet. After that a failure is one `{"error": …}` event
        and the end; `[DONE]` is only sent after a finish reason. Closing the iterator ends the generation.
        """
        events = self._events(lease, body)
        # Runs up to the server's status line. A generator that never began would not clean up when dropped.
        await anext(events)
        return events

    async def _events(self, lease: Lease, body: dict[str, Any]) -> AsyncGenerator[bytes, None]:
        with lease:
            request = await asyncio.to_thread(prepare, lease, body)
            upstream = self._client.build_request("POST", lease.base_url + CHAT, json=request | {"stream": True})
            try:
                reply = await self._client.send(upstream, stream=True)
            except httpx.TransportError as error:
                raise _lost(lease, error) from error
            try:
                if not reply.is_success:
                    raise refusal(reply.status_code, (await reply.aread()).decode(errors="replace"), lease)
                yield b""
                include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
                rewriter = ChunkRewriter(lease, _kept_stop(lease, request), include_usage)
                async with aclosing(_rewritten(reply, lease, rewriter)) as events:
                    async for event in events:
                        yield event
            finally:
                await reply.aclose()


async def _rewritten(reply: httpx.Response, lease: Lease, rewriter: ChunkRewriter) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(_event_data(reply)) as events:
            async for data in events:
                if data != b"[DONE]" and (event := rewriter.rewrite(data)):
                    yield event
        if not rewriter.finished:
            raise _lost(lease, EOFError("the answer was cut off"))
        yield rewriter.end()
    except httpx.TransportError as error:
        yield error_event(_lost(lease, error))
    except S2DError as error:
        yield error_event(error)


async def _event_data(reply: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The data of each event, one line each. Lines are cut at newline bytes only, as U+2028 and its like end a
    line for `str.splitlines`, on which httpx's own line iterator rests, but not in JSON."""
    buffer = b""
    async for part in reply.aiter_bytes():
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _kept_stop(lease: Lease, request: dict[str, Any]) -> list[str]:
    """The stop sequences that this server would leave in the text."""
    stop = request.get("stop") if lease.engine.keeps_stop else None
    return [stop] if isinstance(stop, str) else list(stop or [])


def _lost(lease: Lease, error: Exception) -> Unavailable:
    if isinstance(error, httpx.ReadTimeout):
        return Unavailable(
            f"the server of {lease.student_id} took too long: ask for fewer tokens", code="student_timeout"
        )
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return Unavailable(
        f"the server of {lease.student_id} ended while answering ({reason}): try again, it is started anew",
        code="student_server_died",
    )
