"""One request over a real socket, against servers that answer in every wrong way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.serve import upstream as module
from s2d.serve.upstream import HIGH_WATER, Gone, Limits, Pace, Reply, Slow, Upstream

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
LIMITS = Limits(connect_s=5, first_byte_s=5, silence_s=5, total_s=30)
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def asked(
    serve: Serve,
    read: Callable[[Reply], Awaitable[bytes]] = Reply.read,
    limits: Limits = LIMITS,
    pace: Pace | None = None,
) -> bytes:
    """What `read` makes of the server's answer."""

    async def main() -> bytes:
        async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().split(b"content-length:")[1].split()[0])
            assert await reader.readexactly(length) == b"{}"
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.CancelledError):
                return  # the client has left, or the test is over
            writer.close()

        server = await asyncio.start_server(once, "127.0.0.1", 0)
        try:
            url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
            upstream = Upstream(limits, pace)
            reply = await upstream.post(url, b"{}")
            try:
                return await read(reply)
            finally:
                reply.close()
                assert not upstream._pace.reading, "an answer that is over slows no other down"
        finally:
            server.close()

    return asyncio.run(main())


def says(*pieces: bytes, pause_s: float = 0.0) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return serve


@given(
    body=st.binary(min_size=1, max_size=300), cuts=st.lists(st.integers(0, 400), max_size=6), sizes=st.integers(1, 60)
)
@settings(max_examples=30, deadline=None)
def test_however_an_answer_is_cut_it_is_the_same(body: bytes, cuts: list[int], sizes: int) -> None:
    """The chunks of HTTP and the pieces of TCP need not agree."""
    parts = [body[i : i + sizes] for i in range(0, len(body), sizes)]
    sent = CHUNKED + b"".join(map(chunk, parts)) + b"0\r\n\r\n"
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    assert asked(says(*(sent[a:b] for a, b in pairwise(edges)))) == body


def test_an_answer_with_a_length() -> None:
    assert asked(says(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe", b"llo")) == b"hello"


def test_a_provisional_answer_is_not_the_answer() -> None:
    assert asked(says(b"HTTP/1.1 100 Continue\r\n\r\n", CHUNKED + chunk(b"a") + b"0\r\n\r\n")) == b"a"


@pytest.mark.parametrize(
    "pieces",
    [(), (b"HTTP/1.1 200",), (CHUNKED,), (CHUNKED + chunk(b"a"),), (CHUNKED + b"5\r\nab",),
     (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe",), (b"SSH-2.0-OpenSSH\r\n",), (CHUNKED + b"zz\r\n",)],
)  # fmt: skip
def test_what_breaks_off_is_never_taken_for_whole(pieces: tuple[bytes, ...]) -> None:
    with pytest.raises(Gone):
        asked(says(*pieces))


def test_nobody_there() -> None:
    with pytest.raises(Gone):
        asyncio.run(Upstream(LIMITS).post("http://127.0.0.1:9/v1/x", b"{}"))


@pytest.mark.parametrize(
    ("limits", "pieces"),
    [
        (Limits(5, 0.2, 5, 30), (b"",)),
        (Limits(5, 0.2, 5, 30), (CHUNKED,)),  # a status alone is no token
        (Limits(5, 5, 0.2, 30), (CHUNKED + chunk(b"a"),)),
        (Limits(5, 5, 5, 0.5), (CHUNKED, *[chunk(b"a")] * 100)),
    ],
)
def test_an_answer_that_takes_too_long_is_ended(limits: Limits, pieces: tuple[bytes, ...]) -> None:
    began = time.monotonic()
    with pytest.raises(Slow):
        asked(says(*pieces, *[b""] * 100, pause_s=0.05), limits=limits)
    assert time.monotonic() - began < 4


def test_a_client_that_does_not_read_holds_the_server_back_and_not_our_memory() -> None:
    sent = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(CHUNKED)
        for _ in range(400):
            writer.write(chunk(b"x" * 100_000))
            await writer.drain()
            sent += 100_000
        writer.write(b"0\r\n\r\n")

    async def read_late(reply: Reply) -> bytes:
        await asyncio.sleep(0.5)
        # What the kernel holds comes on top of ours.
        assert sent < HIGH_WATER + 15_000_000
        return await reply.read()

    # Silence while nothing is read on purpose is not the server's.
    assert len(asked(serve, read_late, Limits(5, 5, 0.2, 30))) == 40_000_000


def test_closing_early_tells_the_server() -> None:
    left = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + chunk(b"a"))
        await reader.read()
        left.set()

    async def leave(reply: Reply) -> bytes:
        first = await reply.part()
        reply.close()
        async with asyncio.timeout(5):
            await left.wait()
        return first

    assert asked(serve, leave) == b"a"


# --- connections that are kept, parts that are put together -----------------------------------------------------------


def conversation(serve: Serve, ask: Callable[[Upstream, str], Awaitable[None]]) -> int:
    """How many connections it took."""
    connections = 0

    async def main() -> None:
        async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal connections
            connections += 1
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                return
            writer.close()

        server = await asyncio.start_server(counted, "127.0.0.1", 0)
        try:
            await ask(Upstream(LIMITS), f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x")
        finally:
            server.close()

    asyncio.run(main())
    return connections


async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, times: int = 100) -> None:
    for _ in range(times):
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().split(b"content-length:")[1].split()[0]))
        writer.write(CHUNKED + chunk(b"a") + b"0\r\n\r\n")


async def read_all(upstream: Upstream, url: str) -> bytes:
    reply = await upstream.post(url, b"{}")
    try:
        return await reply.read()
    finally:
        reply.close()


def test_a_connection_is_used_again_once_its_answer_was_read_to_the_end() -> None:
    async def ask(upstream: Upstream, url: str) -> None:
        assert [await read_all(upstream, url) for _ in range(5)] == [b"a"] * 5
        assert await asyncio.gather(*(read_all(upstream, url) for _ in range(3))) == [b"a"] * 3

    assert conversation(answers, ask) == 3


def test_an_answer_that_was_left_takes_its_connection_with_it() -> None:
    async def ask(upstream: Upstream, url: str) -> None:
        for _ in range(3):
            (await upstream.post(url, b"{}")).close()

    assert conversation(answers, ask) == 3


def test_a_kept_connection_that_the_server_has_closed_is_replaced() -> None:
    async def ask(upstream: Upstream, url: str) -> None:
        for _ in range(3):
            assert await read_all(upstream, url) == b"a"

    assert conversation(lambda reader, writer: answers(reader, writer, 1), ask) == 3


def test_a_server_that_dies_on_every_request_is_not_asked_for_ever() -> None:
    async def dies(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")

    async def ask(upstream: Upstream, url: str) -> None:
        with pytest.raises(Gone):
            await read_all(upstream, url)

    assert conversation(dies, ask) == 1


def test_old_connections_are_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_S", 0.05)

    async def ask(upstream: Upstream, url: str) -> None:
        for _ in range(2):
            assert await read_all(upstream, url) == b"a"
            await asyncio.sleep(0.1)

    assert conversation(answers, ask) == 2


def test_tokens_that_come_together_are_passed_together_but_the_first_never_waits() -> None:
    heard = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Just after a tick, so that the whole moment is before what follows.
        await asyncio.sleep(1.0 - asyncio.get_running_loop().time() % 1.0 + 0.01)
        writer.write(CHUNKED + chunk(b"0"))
        await heard.wait()
        for n in range(1, 9):
            writer.write(chunk(b"%d" % n))
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")

    async def read(reply: Reply) -> bytes:
        first = await reply.part()
        began = time.monotonic()
        heard.set()
        second = await reply.part()
        assert (first, second) == (b"0", b"12345678")
        assert time.monotonic() - began > 0.3
        return first + second + await reply.part()

    assert asked(serve, read, pace=Pace(1.0, most_s=1.0)) == b"012345678"


def test_one_who_wants_the_whole_answer_waits_for_no_tick() -> None:
    pieces = [CHUNKED + chunk(b"0"), *(chunk(b"%d" % n) for n in range(1, 8)), b"0\r\n\r\n"]
    assert asked(says(*pieces, pause_s=0.02), pace=Pace(60.0, most_s=60.0)) == b"01234567"


def test_the_moment_grows_with_the_answers_that_are_read_and_has_an_end() -> None:
    pace = Pace(alone_s=4.0, each_s=1.0, most_s=10.0)
    found = []
    for pace.reading in (1, 2, 7, 8, 100):
        found.append(pace.after(1000.5) // 1)
    # The first tick after it: multiples of 4, 5, 10 and 10 seconds.
    assert found == [1004, 1005, 1010, 1010, 1010]


def test_parts_can_be_had_as_they_come() -> None:
    async def read(reply: Reply) -> bytes:
        parts = [part async for part in _parts(reply)]
        assert len(parts) > 4
        return b"".join(parts)

    pieces = [CHUNKED + chunk(b"0"), *(chunk(b"%d" % n) for n in range(1, 8)), b"0\r\n\r\n"]
    assert asked(says(*pieces, pause_s=0.05), read, pace=Pace(most_s=0.0)) == b"01234567"


async def _parts(reply: Reply) -> AsyncIterator[bytes]:
    while part := await reply.part():
        yield part


def test_what_comes_unasked_on_a_kept_connection_is_no_answer() -> None:
    async def answers_and_goes_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answers(reader, writer, 1)
        await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 408 Too Slow\r\ncontent-length: 5\r\n\r\nSTALE")
        await answers(reader, writer, 1)

    async def ask(upstream: Upstream, url: str) -> None:
        for _ in range(2):
            assert await read_all(upstream, url) == b"a"
            async with asyncio.timeout(10):  # closed connections are not kept
                while any(upstream._idle.values()):
                    await asyncio.sleep(0.01)

    assert conversation(answers_and_goes_on, ask) == 2
