"""Work that is worth doing only while its client waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

Answer = TypeVar("Answer")


async def while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
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
