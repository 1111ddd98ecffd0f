"""Event streams and chat as the command line reads them: whole, broken off, and from another program."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from s2d.cli import sse
from s2d.cli.client import ApiError, Client
from s2d.errors import Unavailable


def test_server_sent_events_are_parsed() -> None:
    lines = [": still here", "", "id: 1", "event: state", 'data: {"a"', "data: :1}", "", "data:x", "", "event: lost"]
    assert list(sse.parse(lines)) == [
        None,
        sse.ServerEvent("state", '{"a"\n:1}'),
        sse.ServerEvent("message", "x"),
    ]


@contextmanager
def scripted(answers: list[bytes | int], seen: list[dict[str, str]]) -> Iterator[str]:
    """A server that gives these bodies (or, for a number, that status) one after the other and closes each time."""
    script = iter(answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append({name.lower(): value for name, value in self.headers.items()})
            answer = next(script)
            self.send_response(answer if isinstance(answer, int) else 200)
            # A length that is never reached: the connection breaks off.
            self.send_header("content-length", "100000" if isinstance(answer, bytes) else "0")
            self.end_headers()
            if isinstance(answer, bytes):
                self.wfile.write(answer)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def event_frame(seq: int) -> bytes:
    body = {"seq": seq, "type": "message", "level": "info", "stage": None, "step": None, "message": "", "data": {}}
    return f"id: {seq}\nevent: message\ndata: {json.dumps(body)}\n\n".encode()


def test_a_broken_event_stream_goes_on_at_the_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.cli.client.RECONNECT_PAUSE_S", 0.01)
    seen: list[dict[str, str]] = []
    first = event_frame(1) + event_frame(2) + b"id: 3\nevent: message\ndata: {"
    last = event_frame(3) + b'event: done\ndata: {"state":"succeeded"}\n\n'
    with scripted([first, last], seen) as url, Client(url, "key") as client:
        events = [event["seq"] for event in client.events("job_1") if event]
    assert events == [1, 2, 3]
    assert [request["last-event-id"] for request in seen] == ["0", "2"]
    assert seen[0]["authorization"] == "Bearer key"


def test_a_service_that_stays_away_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.cli.client.RECONNECT_PAUSE_S", 0.01)
    monkeypatch.setattr("s2d.cli.client.RECONNECT_FOR_S", 0.1)
    with scripted([event_frame(1)], []) as url:
        client = Client(url, "key")
        events = client.events("job_1")
        assert next(events) is not None
    with client, pytest.raises(Unavailable, match="No s2d answers"):
        list(events)


def chunk(text: str) -> bytes:
    return f"data: {json.dumps({'choices': [{'delta': {'content': text}}]})}\n\n".encode()


def test_chat_streams_to_the_end() -> None:
    with scripted([chunk("4") + chunk("2") + b"data: [DONE]\n\n"], []) as url, Client(url, "key") as client:
        assert list(client.chat({"model": "m"})) == ["4", "2"]


@pytest.mark.parametrize("end", [b"", b'data: {"error": {"message": "the server died"}}\n\n'])
def test_an_answer_that_breaks_off_is_an_error(end: bytes) -> None:
    with scripted([chunk("4") + end], []) as url, Client(url, "key") as client:
        pieces = client.chat({"model": "m"})
        assert next(pieces) == "4"
        with pytest.raises((ApiError, Unavailable)):
            list(pieces)


def test_another_program_on_the_port_is_not_taken_for_ours() -> None:
    with (
        scripted([404], []) as url,
        Client(url, "key") as client,
        pytest.raises(ApiError, match=r"/v1/models answered 404"),
    ):
        client.get("/v1/models")
