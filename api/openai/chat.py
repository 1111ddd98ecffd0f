"""Completions from a student, of a chat or of a text, whole or as a stream."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from api.connected import EventStream, while_connected
from api.deps import ChatDep, ContextDep
from api.schemas import Id
from s2d.serve import CHAT, TEXT, Endpoint, asked
from s2d.serve.request import ChatRequest, TextRequest
from s2d.services import chat as service
from s2d.services.chat import Chat
from s2d.services.context import Context

router = APIRouter(tags=["chat"])


class _Client(BaseModel):
    """What a client says beside the question."""

    model: Id = Field(description="A student: see GET /v1/models.")
    n: int | None = Field(default=None, ge=1, le=8, description="Answers to give.")
    user: str | None = Field(default=None, description="Taken and not used, like the five fields below.")
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None


class ChatCompletionRequest(_Client, ChatRequest):
    """OpenAI's body. A field that the student's server does not honour is refused, with its name."""


class CompletionRequest(_Client, TextRequest):
    """OpenAI's older body: `prompt` is gone on with as it is, without the student's chat template."""


def _answers(whole: str, pieces: str) -> dict[int | str, dict[str, Any]]:
    return {
        200: {
            "description": f"OpenAI's `{whole}`; with `stream`, {pieces} and `[DONE]`.",
            "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
        }
    }


@router.post(
    "/chat/completions",
    response_class=Response,
    responses=_answers("chat.completion", "`chat.completion.chunk`s"),
)
async def complete(ctx: ContextDep, chat: ChatDep, request: Request, body: ChatCompletionRequest) -> Response:
    """Ask a student. Its server starts with the first request, which then takes longer, and stops when idle."""
    return await _answer(ctx, chat, request, body, CHAT)


@router.post("/completions", response_class=Response, responses=_answers("text_completion", "the same in pieces"))
async def complete_text(ctx: ContextDep, chat: ChatDep, request: Request, body: CompletionRequest) -> Response:
    """Let a student go on with a text. See chat completions for its server."""
    return await _answer(ctx, chat, request, body, TEXT)


async def _answer(
    ctx: Context, chat: Chat, request: Request, body: ChatCompletionRequest | CompletionRequest, endpoint: Endpoint
) -> Response:
    question = asked(body)
    if body.stream:
        return EventStream(service.stream(ctx, chat, body.model, question, endpoint))
    async with while_connected(request.receive):
        whole = await service.answer(ctx, chat, body.model, question, endpoint)
    return Response(whole, media_type="application/json")
