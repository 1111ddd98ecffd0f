"""A POST to a student's server, and its answer as the bytes come: the part of the gateway that every token passes.

The stock client libraries cost too much for a token, see benchmarks/results/gateway.md. This is asyncio's transport and
httptools' parser and no more: no redirects, no compression, no proxies. An answer must have a length or be chunked, as
those of uvicorn are; one that only the end of the connection ends counts as cut off.

After a part was passed on nothing is read for a moment, so that tokens which come meanwhile go on together: to be woken
for each costs a busy machine more than to handle it. The first part never waits.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

#: Bytes that wait for the client before no more are read from the server.
HIGH_WATER = 256 * 1024
#: Idle connections are used again for so long; uvicorn closes them after five seconds.
KEPT_S = 3.0

Origin = tuple[str, str, int]


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

    def __init__(self, pool: Upstream, origin: Origin, connection: _Connection, status: int) -> None:
        self.status = status
        # The hot path: one call for a part, and none in between.
        self.part = connection.part
        self._pool, self._origin, self._connection = pool, origin, connection

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300

    async def read(self) -> bytes:
        """All of the body. Raises Gone, Slow."""
        whole = bytearray()
        while part := await self._connection.some():
            whole += part
        return bytes(whole)

    def close(self) -> None:
        self._pool.give_back(self._origin, self._connection)


@dataclass
class Pace:
    """How long the moment is. All connections go on at the same ticks, one waking for all of them.

    Args:
        alone_s: for one answer that is being read.
        each_s: so much more for each further one.
        most_s: never more: less than a screen's picture lasts. With 0 each part is given as it comes.
    """

    alone_s: float = 0.008
    each_s: float = 0.001
    most_s: float = 0.015
    reading: int = field(default=0, init=False)

    def after(self, now: float) -> float:
        """The next tick, seconds on the loop's clock; `now` for at once."""
        moment_s = min(self.alone_s + (self.reading - 1) * self.each_s, self.most_s)
        return (now // moment_s + 1) * moment_s if moment_s else now


class Upstream:
    """The connections to servers. Belongs to one event loop."""

    def __init__(self, limits: Limits, pace: Pace | None = None) -> None:
        self._limits = limits
        self._pace = pace or Pace()
        self._idle: dict[Origin, list[_Connection]] = defaultdict(list)

    async def post(self, url: str, body: bytes, key: str | None = None) -> Reply:
        """Send JSON, with `key` as a bearer token; the answer as soon as it has a status.

        It is sent once, but for one case: a kept connection turns out to have been closed before a byte came back.

        Raises:
            Gone, Slow: and then nothing is left open.
        """
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        origin = parts.scheme, parts.hostname or "", parts.port or (443 if secure else 80)
        request = _head(parts.path, parts.netloc.rpartition("@")[2], len(body), key) + body
        while (kept := self._take(origin)) is not None:
            try:
                return await self._exchange(origin, kept, request)
            except Gone:
                if kept.heard_anything:
                    raise
        return await self._exchange(origin, await self._connect(origin), request)

    def give_back(self, origin: Origin, connection: _Connection) -> None:
        """Keep a connection for the next request if its answer was read to the end, else end it."""
        if connection.rest():
            connection.home = self._idle[origin]
            connection.home.append(connection)
        else:
            connection.end()

    async def _exchange(self, origin: Origin, connection: _Connection, request: bytes) -> Reply:
        try:
            return Reply(self, origin, connection, await connection.send(request, self._limits))
        except BaseException:
            connection.end()
            raise

    def _take(self, origin: Origin) -> _Connection | None:
        """The connection that was used last, if it is still good; older ones end here."""
        kept = self._idle.get(origin)
        while kept:
            connection = kept.pop()
            if connection.usable():
                return connection
            connection.end()
        self._idle.pop(origin, None)
        return None

    async def _connect(self, origin: Origin) -> _Connection:
        scheme, host, port = origin
        loop = asyncio.get_running_loop()
        secure = ssl.create_default_context() if scheme == "https" else None
        try:
            async with asyncio.timeout(self._limits.connect_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self._pace), host, port, ssl=secure
                )
        except TimeoutError:
            raise Gone(f"no connection within {self._limits.connect_s:g} s") from None
        except OSError as error:
            raise Gone(str(error)) from error
        return connection


def _head(path: str, host: str, length: int, key: str | None) -> bytes:
    authorization = f"authorization: Bearer {key}\r\n" if key else ""
    kind = "content-type: application/json\r\n"
    return f"POST {path} HTTP/1.1\r\nhost: {host}\r\n{kind}{authorization}content-length: {length}\r\n\r\n".encode()


class _Connection(asyncio.Protocol):
    """One request and answer after the other."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pace: Pace) -> None:
        self.heard_anything = False
        # The idle ones that it is among.
        self.home: list[_Connection] | None = None
        self._loop = loop
        self._pace = pace
        self._reads = False
        self._open = True
        self._rested_at = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._moment: asyncio.TimerHandle | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []

    async def send(self, request: bytes, limits: Limits) -> int:
        """The status of the answer. Raises Gone, Slow."""
        self._limits = limits
        self._parser = httptools.HttpResponseParser(self)
        self._status: asyncio.Future[int] = self._loop.create_future()
        self._held, self._paused, self._speaks, self._whole, self._stays = 0, False, False, False, False
        self._error: Exception | None = None
        self.heard_anything = False
        self._began = self._heard = self._loop.time()
        self._watch = self._loop.call_later(min(limits.first_byte_s, limits.total_s), self._check_time)
        if not self._open:
            raise Gone("the connection was closed")
        self._transport.write(request)
        return await self._status

    async def part(self) -> bytes:
        """What of the body has come since the last call, once there is something; empty at the end.

        One caller at a time. Raises Gone, Slow.
        """
        data = await self.some()
        if data and not self._whole:
            self._wait_a_moment()
        return data

    async def some(self) -> bytes:
        """`part`, for those who want all of it soon."""
        while not (self._parts or self._whole or self._error is not None):
            self._waiter = self._loop.create_future()
            await self._waiter
        if not self._parts:
            if self._error is not None:
                raise self._error
            return b""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._paused and self._moment is None:
            self._go_on()
        return data

    def rest(self) -> bool:
        """Whether the answer is done with, and the connection can have another one."""
        self._cancel_watch()
        self._count_out()
        if not (self._open and self._whole and self._stays) or self._parts or self._error is not None:
            return False
        self._rested_at = self._loop.time()
        return True

    def usable(self) -> bool:
        return self._open and self._loop.time() - self._rested_at < KEPT_S

    def end(self) -> None:
        self._count_out()
        for timer in (self._watch, self._moment):
            if timer is not None:
                timer.cancel()
        self._transport.abort()

    # --- asyncio ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._watch is None or self._whole:
            # Nobody has asked: what comes now must not be taken for the next answer.
            self._open = False
            self._transport.abort()
            return
        self.heard_anything = True
        self._heard = self._loop.time()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(Gone(f"its answer is no HTTP: {error}"))
        if self._parts or self._whole:
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open = False
        if self.home is not None and self in self.home:
            self.home.remove(self)
        if self._watch is not None:
            self._watch.cancel()
            if not self._whole:
                self._fail(Gone(str(exc) if exc else "the answer was cut off"))

    # --- httptools ---

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        # 1xx comes before the answer itself.
        if status >= 200 and not self._status.done():
            self._status.set_result(status)

    def on_body(self, body: bytes) -> None:
        if not self._speaks:
            self._speaks = self._reads = True
            self._pace.reading += 1
            self._cancel_watch()
            self._check_time()
        self._parts.append(body)
        self._held += len(body)
        if self._held > HIGH_WATER and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._status.done():
            self._whole = True
            self._stays = self._parser.should_keep_alive()
            self._cancel_watch()

    # --- the rest ---

    def _wait_a_moment(self) -> None:
        now = self._loop.time()
        then = self._pace.after(now)
        if then <= now or self._moment is not None:
            return
        self._moment = self._loop.call_at(then, self._go_on)
        if not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def _go_on(self) -> None:
        self._moment = None
        # Too much is held: the client is slow, and takes it first.
        if self._paused and self._open and self._held <= HIGH_WATER:
            self._paused = False
            self._transport.resume_reading()

    def _count_out(self) -> None:
        if self._reads:
            self._reads = False
            self._pace.reading -= 1

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        if not self._status.done():
            self._status.set_exception(self._error)
            # Whoever was waiting for it may have been cancelled.
            self._status.exception()
        self._wake()

    def _cancel_watch(self) -> None:
        if self._watch is not None:
            self._watch.cancel()

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
