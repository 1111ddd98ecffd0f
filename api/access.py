"""Nobody gets anything without an API key, except the health check."""

from __future__ import annotations

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from s2d.services.keys import authenticate

OPEN_PATHS = frozenset({"/healthz"})


class Access:
    """Checks `Authorization: Bearer KEY` before a byte of the body is read, so that a stranger cannot fill the disk.

    A middleware and not a dependency: FastAPI reads the body first. What is added later is protected too.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            await run_in_threadpool(authenticate, scope["app"].state.context, bearer(Headers(scope=scope)))
        await self._app(scope, receive, send)


def bearer(headers: Headers) -> str | None:
    """The key in the Authorization header; None when there is none in the Bearer form."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else None
