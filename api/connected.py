"""Work that is worth doing only while its client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import cast

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send


@asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels what is done inside when the client leaves, so that nobody's answer is not generated on.

    Begins when the request's body has been read.

    Raises:
        ClientDisconnect: the client left; there is nobody to answer.
    """
    inside = cast("asyncio.Task[object]", asyncio.current_task())
    watch = asyncio.ensure_future(_left(receive))
    leave = _Leave(inside)
    watch.add_done_callback(leave)
    try:
        yield
    except asyncio.CancelledError:
        # Somebody else may want the task to end at the same time.
        if leave.happened and not inside.uncancel():
            raise ClientDisconnect from None
        raise
    finally:
        watch.remove_done_callback(leave)
        watch.cancel()


class _Leave:
    def __init__(self, inside: asyncio.Task[object]) -> None:
        self.happened = False
        self._inside = inside

    def __call__(self, _: asyncio.Future[None]) -> None:
        self.happened = True
        self._inside.cancel()


async def _left(receive: Receive) -> None:
    # The body has been read, so the next message can only be that the client is gone.
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events as they come. What `begin` raises is answered as of any endpoint.

    Starlette's StreamingResponse watches the client from a task group of its own and cannot begin inside: with it a
    question took the process 740 µs where it takes 640 so.
    """

    media_type = "text/event-stream"

    def __init__(self, begin: Awaitable[AsyncGenerator[bytes, None]]) -> None:
        self.status_code = 200
        self.background = None
        self._begin = begin
        self.init_headers({"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with while_connected(receive), aclosing(await self._begin) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for event in events:
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
