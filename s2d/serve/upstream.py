"""A POST to a student's server, and its answer as the bytes come: the part of the gateway that every token passes.

httpx and aiohttp cost more for a chunk than the server itself, see benchmarks/results/gateway.md. This is asyncio's
transport and httptools' parser and no more: one request for a connection, no redirects, no compression, no proxies.
An answer must have a length or be chunked, as those of uvicorn are; one that only the end of the connection ends counts
as cut off.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from typing import cast
from urllib.parse import SplitResult, urlsplit

import httptools

#: Bytes that wait for the client before no more are read from the server, and when reading goes on.
HIGH_WATER, LOW_WATER = 256 * 1024, 64 * 1024


class Gone(Exception):
    """The server cannot be reached, or its answer broke off."""


class Slow(Exception):
    """The server kept silent, or went on, for longer than is accepted."""


@dataclass(frozen=True)
class Limits:
    """Seconds: to connect, to the first byte of an answer's body, of silence after it, and for all of it."""

    connect_s: float
    first_byte_s: float
    silence_s: float
    total_s: float


class Reply:
    """An answer whose status line has come. Close it: what was not read is then not generated on."""

    def __init__(self, connection: _Connection, status: int) -> None:
        self.status = status
        self._connection = connection

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    async def read(self) -> bytes:
        """All of the body. Raises Gone, Slow."""
        whole = bytearray()
        while part := await self.part():
            whole += part
        return bytes(whole)

    async def part(self) -> bytes:
        """What of the body has come since the last call, once there is something; empty at the end. Raises Gone, Slow.

        One caller at a time.
        """
        return await self._connection.part()

    def close(self) -> None:
        self._connection.close()


async def post(url: str, body: bytes, limits: Limits, key: str | None = None) -> Reply:
    """Send JSON, with `key` as a bearer token; the answer as soon as it has a status.

    Raises:
        Gone, Slow: and then nothing is left open.
    """
    parts = urlsplit(url)
    connection = await _connect(parts, limits)
    try:
        host = parts.netloc.rpartition("@")[2]
        head = f"POST {parts.path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-type: application/json\r\n"
        authorization = f"authorization: Bearer {key}\r\n" if key else ""
        connection.write(f"{head}{authorization}content-length: {len(body)}\r\n\r\n".encode("ascii") + body)
        return Reply(connection, await connection.status)
    except BaseException:
        connection.close()
        raise


async def _connect(url: SplitResult, limits: Limits) -> _Connection:
    loop = asyncio.get_running_loop()
    secure = ssl.create_default_context() if url.scheme == "https" else None
    port = url.port or (443 if secure else 80)
    try:
        async with asyncio.timeout(limits.connect_s):
            _, connection = await loop.create_connection(
                lambda: _Connection(loop, limits), url.hostname or "", port, ssl=secure
            )
    except TimeoutError:
        raise Gone(f"no connection within {limits.connect_s:g} s") from None
    except OSError as error:
        raise Gone(str(error)) from error
    return connection


class _Connection(asyncio.Protocol):
    """One request, one answer."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits) -> None:
        self.status: asyncio.Future[int] = loop.create_future()
        self._loop = loop
        self._limits = limits
        self._parser = httptools.HttpResponseParser(self)
        self._parts: list[bytes] = []
        self._held = 0
        self._paused = False
        self._whole = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._began = self._heard = loop.time()
        self._speaks = False
        self._watch = loop.call_later(min(limits.first_byte_s, limits.total_s), self._check_time)

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    async def part(self) -> bytes:
        if not self._parts:
            if self._error is not None:
                raise self._error
            if self._whole:
                return b""
            self._waiter = self._loop.create_future()
            await self._waiter
            return await self.part()
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        return data

    def close(self) -> None:
        self._watch.cancel()
        self._transport.abort()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Gone(f"its answer is no HTTP: {error}"))
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        if not self._whole:
            self._fail(Gone(str(exc) if exc else "the answer was cut off"))

    # --- httptools ---

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # 1xx comes before the answer itself.
        if status >= 200 and not self.status.done():
            self.status.set_result(status)

    def on_body(self, body: bytes) -> None:
        if not self._speaks:
            self._speaks = True
            self._watch.cancel()
            self._check_time()
        self._parts.append(body)
        self._held += len(body)
        if self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.status.done():
            self._whole = True
            self._watch.cancel()

    # --- the rest ---

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        if not self.status.done():
            self.status.set_exception(self._error)
            # Whoever was waiting for it may have been cancelled.
            self.status.exception()
        self._wake()

    def _check_time(self) -> None:
        """Comes around once for a limit and not once for a chunk: moving a timer for each would cost more than it."""
        quiet_until = self._heard + self._limits.silence_s if self._speaks else self._began + self._limits.first_byte_s
        # While nothing is read on purpose, silence is the client's.
        until = min(quiet_until if not self._paused else self._loop.time() + 1, self._began + self._limits.total_s)
        if self._loop.time() >= until:
            self._fail(Slow())
            self._transport.abort()
        else:
            self._watch = self._loop.call_at(until, self._check_time)
