"""The outermost middleware: each request's id, its span, its line in the log and its place in the metrics."""

from __future__ import annotations

import logging
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import Metrics
from s2d.observe import Span, bind
from s2d.store.ids import new_id

log = logging.getLogger("s2d.access")

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
#: Asked every few seconds by machines; told at DEBUG as long as all is well.
_QUIET_ROUTES = frozenset({"/healthz", "/metrics"})
_SHOWN_PATH = 200


class Observe:
    """Sees the answer as the client does, errors included, until its last byte or until the client leaves."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        answer = _Answer(send, request_id(headers.get("x-request-id", "")))
        begun = scope["app"].state.tracing.span(
            scope["method"], kind="server", parent=headers.get("traceparent"), attributes={"s2d.request.id": answer.id}
        )
        with bind(request_id=answer.id), begun as span, self._metrics.in_flight.track_inprogress():
            try:
                await self._app(scope, receive, answer)
            finally:
                self._ended(scope, answer, span)

    def _ended(self, scope: Scope, answer: _Answer, span: Span) -> None:
        method, route, seconds = scope["method"], template(scope), time.perf_counter() - answer.began
        self._metrics.ended(
            method, route, answer.status, seconds, streamed=answer.streamed, first_byte_s=answer.first_byte_s
        )
        _tell(method, route, scope["path"][:_SHOWN_PATH], answer.status, seconds)
        span.rename(f"{method} {route}")
        span.set({"http.request.method": method, "http.route": route})
        if answer.status is not None:
            span.set({"http.response.status_code": answer.status})
        if (answer.status or 0) >= 500:
            span.fail(f"answered {answer.status}")


class _Answer:
    """Passes the answer on, with its `x-request-id`, and keeps what is told of it."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.id = request_id
        self.began = time.perf_counter()
        self.status: int | None = None
        self.streamed = False
        self.first_byte_s: float | None = None

    async def __call__(self, message: Message) -> None:
        # Once per part of a stream: nothing is looked at after the first byte.
        if self.first_byte_s is None:
            self._look(message)
        await self._send(message)

    def _look(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["x-request-id"] = self.id
            self.status = message["status"]
            self.streamed = headers.get("content-type", "").startswith("text/event-stream")
        elif message.get("body"):
            self.first_byte_s = time.perf_counter() - self.began


def request_id(incoming: str) -> str:
    """The client's own id where it is one that can be put into a log line, else a new one."""
    return incoming if _SANE_ID.fullmatch(incoming) else new_id("req")


def template(scope: Scope) -> str:
    """The address as it is declared, `/v1/jobs/{job_id}`; `none` for a request that came to no endpoint."""
    # FastAPI keeps an included router's routes as they were declared, without its prefix, and the whole template here.
    context = scope.get("fastapi", {}).get("effective_route_context")
    found = getattr(context, "path_format", None) or getattr(scope.get("route"), "path", None)
    return found or "none"


def _tell(method: str, route: str, path: str, status: int | None, seconds: float) -> None:
    level = logging.DEBUG if route in _QUIET_ROUTES and (status or 0) < 400 else logging.INFO
    duration_ms = round(seconds * 1000, 1)
    fields = {"method": method, "route": route, "path": path, "status": status, "duration_ms": duration_ms}
    # Quoted, because a path may hold line breaks.
    log.log(level, "%s %r %s in %.1f ms", method, path, status or "unanswered", duration_ms, extra={"s2d": fields})
