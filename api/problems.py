"""Every error in one shape, for RFC 9457 and the OpenAI client at once."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from s2d.errors import InvalidRequest, S2DError, Unavailable
from s2d.observe import bound
from s2d.store.database import DATABASE_AWAY

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Codes of what the router itself refuses.
_ROUTER_CODES = {404: "route_not_found", 405: "method_not_allowed", 408: "request_timeout", 413: "too_large"}
#: What OpenAI calls them; every other one is `invalid_request_error` or `server_error`.
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SHOWN_FIELDS = 10


class OpenAIError(BaseModel):
    """What the stock `openai` client reads."""

    message: str
    type: str = Field(description="`invalid_request_error`, `server_error`, or as OpenAI calls 401, 403 and 429.")
    param: str | None = Field(description="The request field at fault, where there is one.")
    code: str


class Problem(BaseModel):
    """Any error. `code` is stable and listed in docs/errors.md; `detail` is for people and may change."""

    type: str = Field(description="`urn:s2d:problem:` and the code.")
    title: str
    status: int
    detail: str
    code: str
    error: OpenAIError
    details: dict[str, Any] | None = Field(
        default=None,
        exclude_if=lambda details: details is None,
        description="Present where there is more to say, such as the rejected rows of an upload.",
    )


def problem(error: S2DError) -> JSONResponse:
    """The answer for an error."""
    return JSONResponse(told(error).model_dump(), error.status, _headers(error), MEDIA_TYPE)


def told(error: S2DError) -> Problem:
    """The error as a document, also for a part of an answer that is good as a whole."""
    return Problem(
        type=f"urn:s2d:problem:{error.code}",
        title=error.code.replace("_", " ").capitalize(),
        status=error.status,
        detail=error.message,
        code=error.code,
        error=OpenAIError(message=error.message, type=_openai_type(error.status), param=error.param, code=error.code),
        details=jsonable_encoder(error.details) or None,
    )


def _openai_type(status: int) -> str:
    if status in _OPENAI_TYPES:
        return _OPENAI_TYPES[status]
    return "server_error" if status >= 500 else "invalid_request_error"


def _headers(error: S2DError) -> dict[str, str]:
    if error.status == 401:
        return {"www-authenticate": "Bearer"}
    if error.status == 409:
        # The stock client repeats a POST on 409 otherwise, and the state will not change by that.
        return {"x-should-retry": "false"}
    if error.status in (429, 503):
        return {"retry-after": str(getattr(error, "retry_after_s", Unavailable.retry_after_s))}
    return {}


class Envelope:
    """Turns every exception into a problem.

    An exception after the answer has begun can only be logged; the connection is then closed early.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Quoted, because a path may hold line breaks. The id is here too for a program that logs in its own way.
        request = f"{scope['method']} {scope['path']!r} (request {bound().get('request_id')})"
        begun = False

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except ClientDisconnect:
            log.info("%s: the client left", request)
        except Exception as error:
            known = as_problem(error)
            _log(known, error, request)
            if begun:
                raise
            await problem(known)(scope, receive, send)


def _log(known: S2DError, error: Exception, request: str) -> None:
    if known.status == 500:
        log.error("%s failed", request, exc_info=error)
    elif known.status > 500:
        log.warning("%s: %s", request, error)


def as_problem(error: Exception) -> S2DError:
    """The error as we tell it. What is not foreseen becomes a 500 that says nothing of the inside."""
    if isinstance(error, S2DError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        return _refused(error)
    if isinstance(error, DATABASE_AWAY):
        return Unavailable("The database does not answer. Try again in a moment.", code="database_unavailable")
    return S2DError("Something went wrong here. The log has the reason under this answer's x-request-id.")


def _refused(error: HTTPException) -> S2DError:
    found = S2DError(str(error.detail), code=_ROUTER_CODES.get(error.status_code, InvalidRequest.code))
    found.status = error.status_code
    if error.status_code in (404, 405):
        found.message = {
            404: "There is nothing at this address. GET /openapi.json lists what there is.",
            405: "This address does not take this method. GET /openapi.json lists what there is.",
        }[error.status_code]
    return found


def _invalid(errors: Sequence[Any]) -> InvalidRequest:
    first = errors[0]
    if first["type"] == "json_invalid":
        return InvalidRequest(f"The body is not valid JSON: {first['ctx']['error']} at character {first['loc'][-1]}.")
    told = [f"{_field(error) or 'request'}: {error['msg'].removeprefix('Value error, ')}" for error in errors]
    more = f" (and {len(told) - _SHOWN_FIELDS} more)" if len(told) > _SHOWN_FIELDS else ""
    return InvalidRequest("; ".join(told[:_SHOWN_FIELDS]) + more, param=_field(first))


def _field(error: Any) -> str | None:
    """The field's dotted name; the first part of `loc` says only whether it is in the body, query, path or header."""
    return ".".join(str(part) for part in error["loc"][1:]) or None


async def _answer(request: Request, error: Exception) -> JSONResponse:
    response = problem(as_problem(error))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})
        if error.status_code == 405:
            response.headers["allow"] = ", ".join(_allowed(request.app, request.url.path))
    return response


def _allowed(app: FastAPI, path: str) -> list[str]:
    """The methods of an address, by the OpenAPI document: the router knows those of its first route only."""
    return sorted(
        method.upper()
        for template, methods in app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"{(\w+)}", _parameter, template), path)
        for method in methods
    )


def _parameter(name: re.Match[str]) -> str:
    # A student's name may hold slashes.
    return ".+" if name[1] == "model_id" else "[^/]+"


def install(app: FastAPI) -> None:
    """Replace FastAPI's own answers to these two; every other exception goes through to `Envelope`."""
    app.add_exception_handler(RequestValidationError, _answer)
    app.add_exception_handler(HTTPException, _answer)
