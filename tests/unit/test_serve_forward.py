"""Forwarding against a scripted upstream: real sockets, so that a broken connection is a broken connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d.errors import InvalidRequest, S2DError, Unavailable
from s2d.serve import TEXT, Forwarder, Lease, Limits, checked
from s2d.serve.engine import PLAIN_FIELDS, PLAIN_TEXT_FIELDS, VllmEngine
from s2d.serve.reply import StopCut, StudentFailed

T = TypeVar("T")
ASK = {"model": "student", "messages": [{"role": "user", "content": "hi"}]}
ROLE = {"delta": {"role": "assistant"}, "index": 0}
END = {"delta": {}, "index": 0, "finish_reason": "stop"}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class KeepsStop(VllmEngine):
    fields = PLAIN_FIELDS
    text_fields = PLAIN_TEXT_FIELDS
    keeps_stop = True


class Upstream:
    """Answers one request with the given parts and then closes the connection."""

    def __init__(self, status: int, parts: list[bytes], stay: bool = False, model: str = "inner") -> None:
        self.request: dict[str, Any] = {}
        self.released = 0
        self.client_left = asyncio.Event()
        self._head = f"HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        self._parts = parts
        self._stay = stay
        self._model = model

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split()[0])
        self.request = json.loads(await reader.readexactly(length))
        writer.write(self._head)
        for part in self._parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part) if part else b"0\r\n\r\n")
        await writer.drain()
        if self._stay:
            await reader.read()
            self.client_left.set()
        writer.close()

    def lease(self, port: int, engine: VllmEngine) -> Lease:
        def release() -> None:
            self.released += 1

        return Lease("student", Path("/x"), engine, f"http://127.0.0.1:{port}", self._model, release)


def sse(*chunks: Any) -> bytes:
    lines = (chunk if isinstance(chunk, str) else json.dumps(chunk, ensure_ascii=False) for chunk in chunks)
    return b"".join(b"data: " + line.encode() + b"\n\n" for line in lines)


def chunk(choice: dict[str, Any], **more: Any) -> dict[str, Any]:
    head = {"id": "1", "object": "chat.completion.chunk", "created": 1, "model": "inner@main"}
    return head | {"choices": [choice]} | more


def text(content: str) -> dict[str, Any]:
    return chunk({"delta": {"content": content}, "index": 0})


def against(
    upstream: Upstream, call: Callable[[Forwarder, Lease], Awaitable[T]], engine: VllmEngine | None = None
) -> T:
    async def run() -> T:
        server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
        forwarder = Forwarder(Limits(5, 5, 5, 30))
        lease = upstream.lease(server.sockets[0].getsockname()[1], engine or VllmEngine(Path("python"), 0.9))
        try:
            return await call(forwarder, lease)
        finally:
            server.close()

    return asyncio.run(run())


def streamed(upstream: Upstream, engine: VllmEngine | None = None, **options: Any) -> list[Any]:
    async def call(forwarder: Forwarder, lease: Lease) -> bytes:
        return b"".join([event async for event in await forwarder.stream(lease, checked(ASK | options))])

    events = against(upstream, call, engine).decode().split("\n\n")
    assert events.pop() == ""
    assert upstream.released == 1
    return [data if data == "[DONE]" else json.loads(data) for data in (e.removeprefix("data: ") for e in events)]


def completed(upstream: Upstream, engine: VllmEngine | None = None, **options: Any) -> dict[str, Any]:
    try:
        return json.loads(
            against(upstream, lambda forwarder, lease: forwarder.complete(lease, checked(ASK | options)), engine)
        )
    finally:
        assert upstream.released == 1


def test_a_stream_carries_the_students_name_and_ends_with_done() -> None:
    # No [DONE] from the server, usage inside the last chunk, and characters that str.splitlines takes for line ends.
    upstream = Upstream(200, [sse(chunk(ROLE), text("a\u2028\x85b")), sse(chunk(END, usage=USAGE)), b""])
    *chunks, done = streamed(upstream, user="me", n=1)
    assert done == "[DONE]"
    assert [c["choices"][0]["delta"].get("content") for c in chunks] == [None, "a\u2028\x85b", None]
    assert {c["model"] for c in chunks} == {"student"}
    assert all("usage" not in c for c in chunks)
    assert upstream.request == ASK | {"model": "inner", "stream": True, "n": 1}


def passed(parts: list[bytes], **options: Any) -> bytes:
    """The bytes of a stream from a server that has the student under its own name."""

    async def call(forwarder: Forwarder, lease: Lease) -> bytes:
        return b"".join([event async for event in await forwarder.stream(lease, checked(ASK | options))])

    return against(Upstream(200, parts, model="student"), call)


@given(cuts=st.lists(st.integers(0, 500), max_size=8))
def test_what_is_openais_already_passes_unread_however_it_comes(cuts: list[int]) -> None:
    sent = sse(chunk(ROLE), text("a\u2028\x85b"), text('data: {"error"'), chunk(END, usage=USAGE), "[DONE]")
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    assert passed([*(sent[a:b] for a, b in pairwise(edges) if a < b), b""]) == sent


@pytest.mark.parametrize(
    ("sent", "whole", "code"),
    [
        (sse(text("a"), text("b"))[:-9], sse(text("a")), "student_server_died"),  # in the middle of an event
        (sse(text("a")), sse(text("a")), "student_server_died"),
        (
            sse(text("a"), {"error": {"message": "out of memory", "code": 500}}, "[DONE]"),
            sse(text("a")),
            "student_failed",
        ),
        (sse({"error": {"message": "out of memory"}}, "[DONE]"), b"", "student_failed"),
    ],
)
@pytest.mark.parametrize("end", [[b""], []])
def test_an_answer_that_breaks_off_unread_ends_with_one_error_and_no_done(
    sent: bytes, whole: bytes, code: str, end: list[bytes]
) -> None:
    got = passed([sent, *end])
    assert got.startswith(whole)
    (last,) = got[len(whole) :].decode().strip().split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["code"] == code
    assert ("out of memory" in error["message"]) == (code == "student_failed")


def test_a_whole_answer_passes_unread() -> None:
    sent = b'{"choices": [],   "model": "student"}'
    upstream = Upstream(200, [sent, b""], model="student")
    assert against(upstream, lambda forwarder, lease: forwarder.complete(lease, checked(ASK))) == sent


def test_a_completion_without_chat() -> None:
    upstream = Upstream(200, [json.dumps({"choices": [{"text": "5 END 6", "finish_reason": "length"}]}).encode(), b""])
    engine = KeepsStop(Path("python"), 0.9)
    body = {"model": "student", "prompt": "2+3=", "stop": "END", "echo": False}
    answer = json.loads(
        against(upstream, lambda forwarder, lease: forwarder.complete(lease, checked(body, TEXT), TEXT), engine)
    )
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", "5 ")
    assert answer["id"].startswith("cmpl-")
    assert upstream.request == {"model": "inner", "prompt": "2+3=", "stop": "END", "stream": False}


def test_usage_comes_last_without_choices_when_asked_for() -> None:
    upstream = Upstream(200, [sse(chunk(ROLE), chunk(END, usage=USAGE), "[DONE]"), b""])
    *_, usage, done = streamed(upstream, stream_options={"include_usage": True})
    assert (usage["choices"], usage["usage"], done) == ([], USAGE, "[DONE]")


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([sse(text("a"))], "ended while answering"),  # the connection breaks
        ([sse(text("a")), b""], "cut off"),  # the stream ends well, the answer does not
        ([sse(text("a"), {"error": {"message": "out of memory", "code": 500}}, "[DONE]"), b""], "out of memory"),
        ([sse(text("a"), '{"error": "a "quoted" word"}'), b""], "quoted"),  # not even JSON
    ],
)
def test_an_answer_that_breaks_off_ends_with_one_error_and_no_done(parts: list[bytes], said: str) -> None:
    first, last = streamed(Upstream(200, parts))
    assert first["choices"][0]["delta"]["content"] == "a"
    assert said in last["error"]["message"]
    assert last["error"]["code"] in ("student_server_died", "student_failed")


def test_closing_the_stream_leaves_the_server_and_frees_the_lease() -> None:
    upstream = Upstream(200, [sse(text("a"))], stay=True)

    async def call(forwarder: Forwarder, lease: Lease) -> None:
        events = await forwarder.stream(lease, checked(ASK))
        await anext(events)
        await events.aclose()
        async with asyncio.timeout(5):
            await upstream.client_left.wait()

    against(upstream, call)
    assert upstream.released == 1


def test_a_stream_that_nobody_reads_frees_the_lease() -> None:
    upstream = Upstream(200, [sse(text("a"))], stay=True)

    async def call(forwarder: Forwarder, lease: Lease) -> None:
        await forwarder.stream(lease, checked(ASK))
        async with asyncio.timeout(5):
            await upstream.client_left.wait()

    against(upstream, call)
    assert upstream.released == 1


def test_a_completion_gets_what_the_client_requires() -> None:
    answer = {"choices": [{"message": {"role": "assistant"}, "finish_reason": "stop"}], "model": "x", "usage": USAGE}
    reply = completed(Upstream(200, [json.dumps(answer).encode(), b""]))
    assert reply["object"] == "chat.completion"
    assert reply["model"] == "student"
    assert reply["id"].startswith("chatcmpl-")
    assert reply["created"] > 0
    assert reply["choices"][0]["index"] == 0
    assert reply["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize(
    ("status", "body", "kind", "code", "said"),
    [
        (400, {"error": {"message": "maximum context length is 9"}}, InvalidRequest, "context_length_exceeded", "9"),
        (422, {"detail": "Unexpected fields"}, InvalidRequest, "invalid_request", "Unexpected"),
        (400, {"object": "error", "message": "bad"}, InvalidRequest, "invalid_request", "bad"),
        (503, {"error": "worker is dead"}, Unavailable, "unavailable", "worker is dead"),
        (500, "Internal Server Error", StudentFailed, "student_failed", "Internal"),
    ],
)
@pytest.mark.parametrize("call", [completed, streamed])
def test_a_refusal_is_an_error_before_the_first_byte(
    call: Callable[[Upstream], Any], status: int, body: Any, kind: type[S2DError], code: str, said: str
) -> None:
    text = body if isinstance(body, str) else json.dumps(body)
    with pytest.raises(kind, match=said) as caught:
        call(Upstream(status, [text.encode(), b""]))
    assert caught.value.code == code


def test_a_server_that_dies_before_it_answers_is_unavailable() -> None:
    with pytest.raises(Unavailable) as caught:
        completed(Upstream(200, []))
    assert caught.value.code == "student_server_died"


@pytest.mark.parametrize(("field", "value"), [("logprobs", True), ("n", 2)])
def test_what_a_server_would_ignore_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        completed(Upstream(200, []), KeepsStop(Path("python"), 0.9), **{field: value})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 1000),
        ("nonsense", 1),
        ("temperature", "hot"),
        ("max_tokens", 0),
        ("messages", []),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("prompt", "2+3="),
    ],
)
def test_what_is_no_request_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked(ASK | {field: value})
    assert caught.value.code == "invalid_request"
    assert (caught.value.param or "").startswith(field)


def test_neutral_values_and_text_parts_reach_a_server_that_does_not_know_them() -> None:
    answer = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}
    upstream = Upstream(200, [json.dumps(answer).encode(), b""])
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    completed(upstream, KeepsStop(Path("p"), 0.9), logprobs=False, presence_penalty=0.0, seed=None, messages=parts)
    expected = {"model": "inner", "messages": [{"role": "user", "content": "a\nb"}], "stream": False}
    assert upstream.request == expected


def test_a_kept_stop_sequence_is_cut_from_text_and_stream() -> None:
    engine = KeepsStop(Path("python"), 0.9)
    answer = {"choices": [{"message": {"content": "one END."}, "finish_reason": "length"}]}
    choice = completed(Upstream(200, [json.dumps(answer).encode(), b""]), engine, stop="END")["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("one ", "stop")
    parts = [sse(text("one E"), text("N"), text("D."), chunk(END)), b""]
    *chunks, _ = streamed(Upstream(200, parts), engine, stop=["END"])
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "one "


@given(st.lists(st.text("abc", max_size=4)), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_stop_cut_in_pieces_equals_stop_cut_at_once(pieces: list[str], stop: list[str]) -> None:
    cut = StopCut(stop)
    out = "".join(cut.feed(piece) for piece in pieces) + cut.rest()
    whole = "".join(pieces)
    # In pieces the sequence that completes first wins; at once, the one that begins first.
    ends = [whole.find(sequence) + len(sequence) for sequence in stop if sequence in whole]
    if not ends:
        assert out == whole
    else:
        assert whole.startswith(out)
        assert not any(sequence in out for sequence in stop)
        assert len(out) < min(ends)
