"""How large a request may be."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

UPLOAD_PATH = "/v1/files"
#: The multipart headers and the purpose, beside the file itself.
UPLOAD_SLACK = 64 * 1024


class BodyLimit:
    """Refuses a body by its Content-Length, and counts one that has none, or a wrong one, while it streams."""

    def __init__(self, app: ASGIApp, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes
        self._max_upload_bytes = max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._limit(scope)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        await self._app(scope, _counted(receive, limit), send)

    def _limit(self, scope: Scope) -> int:
        if scope["method"] == "POST" and scope["path"] == UPLOAD_PATH:
            return self._max_upload_bytes + UPLOAD_SLACK
        return self._max_body_bytes


def _counted(receive: Receive, limit: int) -> Receive:
    received = 0

    async def counted() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return counted


def _too_large(limit: int) -> HTTPException:
    # An HTTPException, because FastAPI turns any other one that is raised while it reads a body into a 400.
    return HTTPException(413, f"The request is larger than {limit:,} bytes, the most that is accepted here.")
