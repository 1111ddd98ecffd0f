"""How large a request may be, and how slowly its body may come.

Not limited here: a client that sends its headers slowly, or does not read its answer. It holds a connection and no
more; a proxy in front ends those.
"""

from __future__ import annotations

import asyncio
import time

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.paths import address

UPLOAD_PATH = "/v1/files"
#: The multipart headers and the purpose, beside the file itself.
UPLOAD_SLACK = 64 * 1024
#: A body gets one second more for so many bytes that have come, so that a large upload has the time it needs.
MIN_BYTES_PER_S = 64 * 1024


class BodyLimit:
    """Refuses a body by its Content-Length, and counts one that has none, or a wrong one, while it streams.

    A body that the server has waited for longer than `body_timeout_s`, and 1 s for each 64 KiB that came, is refused
    too. Time in which the server itself was busy is not counted.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_upload_bytes: int, body_timeout_s: float) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes
        self._body_timeout_s = body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        await self._app(scope, _Body(receive, limit, self._body_timeout_s), send)

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "POST" and address(scope) == UPLOAD_PATH:
            return self._max_upload_bytes + UPLOAD_SLACK
        return self._max_body_bytes


class _Body:
    """Receives one request's body within its limits."""

    def __init__(self, receive: Receive, limit: int, timeout_s: float) -> None:
        self._receive = receive
        self._limit = limit
        self._timeout_s = timeout_s
        self._received = 0
        self._waited_s = 0.0
        self._whole = False

    async def __call__(self) -> Message:
        # After the body the only message is that the client has left, which may take as long as it likes.
        if self._whole:
            return await self._receive()
        message = await self._in_time()
        self._received += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._received > self._limit:
            raise _too_large(self._limit)
        return message

    async def _in_time(self) -> Message:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s + self._received / MIN_BYTES_PER_S - self._waited_s):
                return await self._receive()
        except TimeoutError:
            raise _too_slow(self._received) from None
        finally:
            self._waited_s += time.monotonic() - began


def _too_large(limit: int) -> HTTPException:
    # An HTTPException, because FastAPI turns any other one that is raised while it reads a body into a 400.
    return HTTPException(413, f"The request is larger than {limit:,} bytes, the most that is accepted here.")


def _too_slow(received: int) -> HTTPException:
    reason = f"The request's body came too slowly: {received:,} bytes of it are here. Send it again, faster."
    # What is still to come of the body must not be taken for the next request.
    return HTTPException(408, reason, {"connection": "close"})
