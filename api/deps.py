"""What endpoints are given: who asks, the context as that tenant sees it, and the running student servers.

Context and servers are opened by the app's lifespan; the caller is found by `api.access`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, cast

from fastapi import Depends, Request

from s2d.services.chat import Chat
from s2d.services.context import Context
from s2d.services.keys import Caller
from s2d.services.tails import Tails


# All are async only so that FastAPI calls them in place: a plain function would take a thread for each request.
async def context(request: Request) -> Context:
    """Confined to the caller's tenant; whole where nobody had to say who they are."""
    whole = cast(Context, request.app.state.context)
    caller: Caller | None = getattr(request.state, "caller", None)
    return whole if caller is None else replace(whole, db=whole.db.of(caller.tenant))


async def caller(request: Request) -> Caller:
    return cast(Caller, request.state.caller)


async def chat(request: Request) -> Chat:
    return cast(Chat, request.app.state.chat)


async def tails(request: Request) -> Tails:
    return cast(Tails, request.app.state.tails)


CallerDep = Annotated[Caller, Depends(caller)]
ContextDep = Annotated[Context, Depends(context)]
TailsDep = Annotated[Tails, Depends(tails)]
ChatDep = Annotated[Chat, Depends(chat)]
