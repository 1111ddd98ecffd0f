"""Carries chat completions to a leased student server and its answers back.

vLLM's answers pass as they come, unread; those of a server that is less like OpenAI's are rewritten, see `reply`.
A request that failed half-way is the caller's to repeat.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from s2d.errors import S2DError, Unavailable
from s2d.serve.lease import Lease
from s2d.serve.reply import ChunkRewriter, error_event, filled, refusal, server_error
from s2d.serve.request import CHAT, Asked, Endpoint, fitted
from s2d.serve.upstream import Gone, Limits, Reply, Slow, Upstream

DONE = b"data: [DONE]\n\n"
_ERROR = b'data: {"error"'


class Forwarder:
    """One per event loop."""

    def __init__(self, limits: Limits) -> None:
        self._upstream = Upstream(limits)

    async def complete(self, lease: Lease, body: Asked, endpoint: Endpoint = CHAT) -> bytes:
        """The whole answer, as JSON. Releases the lease.

        Raises InvalidRequest (the server cannot do it, or refuses it), Unavailable (the server died, is overloaded or
        too slow) or StudentFailed.
        """
        with lease:
            request = await _prepared(lease, body, endpoint)
            try:
                reply = await self._post(lease, endpoint, request | {"stream": False})
                try:
                    answer = await reply.read()
                finally:
                    reply.close()
            except (Gone, Slow) as error:
                raise _lost(lease, error) from error
            if lease.verbatim:
                return answer
            return json.dumps(filled(json.loads(answer), lease, _kept_stop(lease, request))).encode()

    async def stream(self, lease: Lease, body: Asked, endpoint: Endpoint = CHAT) -> AsyncGenerator[bytes, None]:
        """The answer as server-sent events. Releases the lease when the iterator ends, is closed or collected.

        Raises as `complete` does while nothing has been sent yet. After that a failure is one `{"error": …}` event
        and the end; `[DONE]` is only sent after a finish reason. Closing the iterator ends the generation.
        """
        events = self._events(lease, body, endpoint)
        # Runs up to the server's status line. A generator that never began would not clean up when dropped.
        await anext(events)
        return events

    async def _events(self, lease: Lease, body: Asked, endpoint: Endpoint) -> AsyncGenerator[bytes, None]:
        with lease:
            request = await _prepared(lease, body, endpoint)
            try:
                reply = await self._post(lease, endpoint, request | {"stream": True})
            except (Gone, Slow) as error:
                raise _lost(lease, error) from error
            try:
                yield b""
                async with aclosing(_passed(reply, lease, body, request)) as events:
                    async for event in events:
                        yield event
            except (Gone, Slow) as error:
                yield error_event(_lost(lease, error))
            except S2DError as error:
                yield error_event(error)
            finally:
                reply.close()

    async def _post(self, lease: Lease, endpoint: Endpoint, request: dict[str, Any]) -> Reply:
        body = json.dumps(request).encode()
        reply = await self._upstream.post(lease.base_url + endpoint.path, body, lease.engine.key)
        if reply.is_success:
            return reply
        try:
            raise refusal(reply.status, (await reply.read()).decode(errors="replace"), lease)
        finally:
            reply.close()


async def _prepared(lease: Lease, body: Asked, endpoint: Endpoint) -> dict[str, Any]:
    if lease.engine.fits_at_once:
        return fitted(lease, body, endpoint)
    return await asyncio.to_thread(fitted, lease, body, endpoint)


def _passed(reply: Reply, lease: Lease, body: Asked, request: dict[str, Any]) -> AsyncGenerator[bytes, None]:
    if lease.verbatim:
        return _verbatim(reply, lease)
    include_usage = bool((body.get("stream_options") or {}).get("include_usage"))
    return _rewritten(reply, lease, ChunkRewriter(lease, _kept_stop(lease, request), include_usage))


async def _verbatim(reply: Reply, lease: Lease) -> AsyncGenerator[bytes, None]:
    """The events as they come, whole ones only: an error of ours must not begin in the middle of one."""
    rest, last = b"", b""
    while part := await reply.part():
        events = rest + part if rest else part
        rest = b""
        if not events.endswith(b"\n\n"):
            end = events.rfind(b"\n\n") + 2
            events, rest = (events[:end], events[end:]) if end > 1 else (b"", events)
        # In an answer's text the quotes would be escaped.
        if _ERROR in events:
            before, _, error = events.partition(_ERROR)
            if before:
                yield before
            raise server_error(lease, (_ERROR + error).split(b"\n")[0].removeprefix(b"data:").decode(errors="replace"))
        if events:
            last = events
            yield events
    if not last.endswith(DONE):
        raise Gone("the answer was cut off")


async def _rewritten(reply: Reply, lease: Lease, rewriter: ChunkRewriter) -> AsyncGenerator[bytes, None]:
    async for data in _event_data(reply):
        if data != b"[DONE]" and (event := rewriter.rewrite(data)):
            yield event
    if not rewriter.finished:
        raise _lost(lease, Gone("the answer was cut off"))
    yield rewriter.end()


async def _event_data(reply: Reply) -> AsyncGenerator[bytes, None]:
    """The data of each event, one line each. Lines are cut at newline bytes only, as U+2028 and its like end a
    line for `str.splitlines`, but not in JSON."""
    buffer = b""
    while part := await reply.part():
        *lines, buffer = (buffer + part).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _kept_stop(lease: Lease, request: dict[str, Any]) -> list[str]:
    """The stop sequences that this server would leave in the text."""
    stop = request.get("stop") if lease.engine.keeps_stop else None
    return [stop] if isinstance(stop, str) else list(stop or [])


def _lost(lease: Lease, error: Gone | Slow) -> Unavailable:
    if isinstance(error, Slow):
        return Unavailable(
            f"the server of {lease.student_id} took too long: ask for fewer tokens", code="student_timeout"
        )
    return Unavailable(
        f"the server of {lease.student_id} ended while answering ({error}): try again, it is started anew",
        code="student_server_died",
    )
