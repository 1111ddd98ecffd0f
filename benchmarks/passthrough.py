"""The plainest gateways that one would write: FastAPI, a stock client library, every chunk passed on, no key, no limit.

`uvicorn benchmarks.passthrough:with_httpx` or `:with_aiohttp`; `UPSTREAM` says where the server is.
`benchmarks.gateway` measures s2d's gateway beside them.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import httpx
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

URL = f"{os.environ.get('UPSTREAM', '')}/v1/chat/completions"
JSON = {"content-type": "application/json"}


@asynccontextmanager
async def _clients(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    connector = aiohttp.TCPConnector(limit=0)
    async with (
        httpx.AsyncClient(limits=limits, timeout=None, trust_env=False) as app.state.httpx,
        aiohttp.ClientSession(connector=connector) as app.state.aiohttp,
    ):
        yield


with_httpx = FastAPI(lifespan=_clients)
with_aiohttp = FastAPI(lifespan=_clients)


@with_httpx.post("/v1/chat/completions")
async def httpx_chat(request: Request) -> StreamingResponse:
    body = await request.body()

    async def answer() -> AsyncIterator[bytes]:
        async with request.app.state.httpx.stream("POST", URL, content=body, headers=JSON) as reply:
            async for part in reply.aiter_raw():
                yield part

    return StreamingResponse(answer(), media_type="text/event-stream")


@with_aiohttp.post("/v1/chat/completions")
async def aiohttp_chat(request: Request) -> StreamingResponse:
    body = await request.body()

    async def answer() -> AsyncIterator[bytes]:
        async with request.app.state.aiohttp.post(URL, data=body, headers=JSON) as reply:
            async for part in reply.content.iter_any():
                yield part

    return StreamingResponse(answer(), media_type="text/event-stream")
