"""Chat completions from a student, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from api.deps import ChatDep, ContextDep
from api.schemas import Id
from s2d.serve.request import ChatRequest
from s2d.services import chat as service

router = APIRouter(prefix="/chat", tags=["chat"])
Answer = TypeVar("Answer")


class ChatCompletionRequest(ChatRequest):
    """OpenAI's body. A field that the student's server does not honour is refused, with its name."""

    model: Id = Field(description="A student: see GET /v1/models.")
    n: int | None = Field(default=None, ge=1, le=8, description="Answers to give.")
    user: str | None = Field(default=None, description="Taken and not used, like the five fields below.")
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


@router.post(
    "/completions",
    response_class=JSONResponse,
    responses={
        200: {
            "description": "OpenAI's `chat.completion`; with `stream`, `chat.completion.chunk`s and `[DONE]`.",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        }
    },
)
async def complete(ctx: ContextDep, chat: ChatDep, request: Request, body: ChatCompletionRequest) -> Response:
    """Ask a student. Its server starts with the first request, which then takes longer, and stops when idle."""
    fields = body.model_dump(mode="json", exclude_unset=True)
    if body.stream:
        events = await _while_connected(request, service.stream(ctx, chat, body.model, fields))
        return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
    return JSONResponse(await _while_connected(request, service.complete(ctx, chat, body.model, fields)))


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """The work's result; cancels it when the client leaves, so that nobody's answer is not generated on.

    Raises:
        ClientDisconnect: the client left; there is nobody to answer.
    """
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    # The body has been read, so the next message can only be that the client is gone.
    while (await request.receive())["type"] != "http.disconnect":
        pass
