"""What endpoints are given: the context and the running student servers, both opened by the app's lifespan."""

from __future__ import annotations

from typing import Annotated, cast

from fastapi import Depends, Request

from s2d.services.chat import Chat
from s2d.services.context import Context


# Both are async only so that FastAPI calls them in place: a plain function would take a thread for each request.
async def context(request: Request) -> Context:
    return cast(Context, request.app.state.context)


async def chat(request: Request) -> Chat:
    return cast(Chat, request.app.state.chat)


ContextDep = Annotated[Context, Depends(context)]
ChatDep = Annotated[Chat, Depends(chat)]
