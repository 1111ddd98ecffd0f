"""Requests that are too large, too slow, or too many (row 20).

Written byte by byte to the sockets of an API that is a process of its own, on each database, for no client library
sends what these clients send.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from faults_testing import Fault
from sqlalchemy.exc import TimeoutError as NoConnection

from api.app import create_app
from api.limits import MIN_BYTES_PER_S
from api.problems import MEDIA_TYPE, Problem
from benchmarks.rig import until
from s2d.settings import Settings
from s2d.store import students
from s2d.store.database import Database

pytestmark = pytest.mark.fault(20)

STUDENT = "team/student"
BODY, UPLOAD, SLOWEST_S, MOST = 20_000, 4_000_000, 2.0, 3
#: Of what is refused at once or after `SLOWEST_S`, on a machine that has much else to do.
GENEROUS_S = 60.0
PATHS = ("/v1/plans", "/v1/jobs", "/v1/chat/completions")


@pytest.fixture
def settings(engine: Engine) -> dict[str, Any]:
    limits = {"max_body_bytes": BODY, "max_upload_bytes": UPLOAD, "body_timeout_s": SLOWEST_S}
    return {**limits, "serve_max_requests": MOST, "serve_engine": "remote", "vllm_url": engine.url}


class Engine(ThreadingHTTPServer):
    """In the place of a vLLM that somebody keeps running: answers nobody before it is told to."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.free = threading.Event()
        self.asked = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Engine

    def do_GET(self) -> None:
        self._answer({"data": [{"id": STUDENT}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        with self.server.lock:
            self.server.asked += 1
        self.server.free.wait()
        message = {"role": "assistant", "content": "fine"}
        self._answer({"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}})

    def _answer(self, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.free.set()
        server.shutdown()


class Raw:
    """One request of which every byte is ours to send."""

    def __init__(self, fault: Fault, path: str, *headers: str, kind: str = "application/json") -> None:
        self.began = time.monotonic()
        self._socket = socket.create_connection(("127.0.0.1", fault.rig.settings.port), timeout=GENEROUS_S)
        own = (
            f"POST {path} HTTP/1.1",
            "host: s2d",
            f"authorization: Bearer {fault.client.key}",
            f"content-type: {kind}",
        )
        self.send("\r\n".join([*own, *headers, "", ""]).encode())

    def send(self, data: bytes) -> bool:
        """Whether the other side still listens."""
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def chunk(self, data: bytes) -> bool:
        return self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def answered(self) -> bool:
        self._socket.settimeout(0)
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return False
        finally:
            self._socket.settimeout(GENEROUS_S)

    def answer(self) -> httpx.Response:
        with HTTPResponse(self._socket, method="POST") as response:
            response.begin()
            return httpx.Response(response.status, headers=response.getheaders(), content=response.read())

    def closed(self) -> bool:
        """Whether the other side has hung up."""
        try:
            return self._socket.recv(1) == b""
        except ConnectionError:
            return True
        finally:
            self._socket.close()


FORM = "multipart/form-data; boundary=b"
FORM_BEGIN = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x.jsonl"\r\n\r\n'


def refused(response: httpx.Response, status: int, code: str) -> Problem:
    """The answer is this error, in the one shape."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    told = Problem.model_validate_json(response.content)
    assert (response.status_code, told.status, told.code) == (status, status, code), response.text
    assert (told.error.message, told.error.code) == (told.detail, code)
    return told


def uploads(fault: Fault) -> list[Path]:
    return list((fault.rig.settings.state_dir / "files").iterdir())


def test_a_body_that_is_too_large_is_refused_with_a_length_before_it_comes_and_without_one_while_it_comes(
    fault: Fault,
) -> None:
    for path in PATHS:
        request = Raw(fault, path, f"content-length: {BODY + 1}")
        # Not a byte of the body was sent.
        assert "larger than 20,000 bytes" in refused(request.answer(), 413, "too_large").detail
        request = Raw(fault, path, "transfer-encoding: chunked")
        assert request.chunk(b" " * BODY)
        assert not request.answered(), "so much is allowed"
        request.chunk(b" ")
        refused(request.answer(), 413, "too_large")
    request = Raw(fault, "/v1/files", f"content-length: {UPLOAD + 100_000}", kind=FORM)
    refused(request.answer(), 413, "too_large")
    request = Raw(fault, "/v1/files", "transfer-encoding: chunked", kind=FORM)
    request.chunk(FORM_BEGIN)
    for _ in range(UPLOAD // 50_000 + 3):
        request.chunk(b'{"problem": "x"}\n' * 2_942)
    refused(request.answer(), 413, "too_large")
    # A length that is a lie is cut where it says, and one that is none is no request.
    request = Raw(fault, "/v1/plans", "content-length: 2")
    request.send(b"{}" + b" " * BODY)
    # What comes after it is no request, and the server that reads them says so before ours has answered.
    assert request.answer().status_code == 400
    assert len(uploads(fault)) == 1


def test_bodies_that_come_byte_by_byte_are_refused_in_time_while_others_are_served(fault: Fault) -> None:
    slow = [Raw(fault, path, "content-length: 5000") for path in PATHS for _ in range(10)]
    slow += [Raw(fault, "/v1/files", "content-length: 5000", kind=FORM) for _ in range(10)]
    chunked = [Raw(fault, "/v1/files", "transfer-encoding: chunked", kind=FORM) for _ in range(10)]
    # And one that sends nothing at all.
    silent = Raw(fault, "/v1/plans", "content-length: 5000")
    waiting, others, sent = [*slow, *chunked, silent], 0, 0
    ended: dict[Raw, float] = {}
    while waiting:
        for request in waiting:
            if request in chunked:
                request.chunk(FORM_BEGIN[sent % len(FORM_BEGIN) :][:1])
            elif request is not silent:
                request.send(FORM_BEGIN[sent % len(FORM_BEGIN) :][:1])
        sent += 1
        assert fault.client.http.get("/files", timeout=GENEROUS_S).status_code == 200
        others += 1
        for request in [one for one in waiting if one.answered()]:
            ended[request] = time.monotonic() - request.began
            waiting.remove(request)
        assert all(time.monotonic() - request.began < GENEROUS_S for request in waiting), f"{len(waiting)} still wait"
    assert others == sent > 1
    assert min(ended.values()) >= SLOWEST_S
    for request in ended:
        answer = request.answer()
        told = refused(answer, 408, "request_timeout")
        assert "too slowly" in told.detail
        assert answer.headers["connection"] == "close"
        assert request.closed()
    assert len(uploads(fault)) == 1


def test_a_large_upload_may_take_longer_as_long_as_it_comes(fault: Fault) -> None:
    request = Raw(fault, "/v1/files", "transfer-encoding: chunked", kind=FORM)
    request.chunk(FORM_BEGIN)
    lines = b'{"problem": "%d", "answer": 1}\n'
    sent, pieces = 0, 6
    for _ in range(pieces):
        piece = b"".join(lines % (sent + n) for n in range(4 * MIN_BYTES_PER_S // len(lines)))
        sent += 4 * MIN_BYTES_PER_S // len(lines)
        assert request.chunk(piece)
        time.sleep(SLOWEST_S / (pieces - 1))
    request.chunk(b"\r\n--b--\r\n")
    request.send(b"0\r\n\r\n")
    answer = request.answer()
    assert time.monotonic() - request.began > SLOWEST_S
    assert answer.status_code == 200, answer.text
    assert answer.json()["report"]["labeled"] == sent


def test_a_burst_on_one_student_is_answered_or_told_when_to_come_again(fault: Fault, engine: Engine) -> None:
    job = fault.job()
    database = Database(fault.rig.settings.database)
    with database.begin() as session:
        students.register(session, student_id=STUDENT, job_id=job, path="/nowhere")
    database.close()
    body = {"model": STUDENT, "messages": [{"role": "user", "content": "2+2?"}]}

    def ask(stream: bool) -> httpx.Response:
        return fault.client.http.post("/chat/completions", json=body | {"stream": stream}, timeout=2 * GENEROUS_S)

    with ThreadPoolExecutor(MOST) as callers:
        first = [callers.submit(ask, False) for _ in range(MOST)]
        until("as many as may be are asked", lambda: engine.asked == MOST)
        with ThreadPoolExecutor(20) as more:
            for answer in more.map(ask, [False, True] * 20):
                refused(answer, 429, "too_many_requests")
                assert int(answer.headers["retry-after"]) >= 1
        assert engine.asked == MOST, "what is refused never comes to the student"
        assert fault.client.http.get("/models").status_code == 200
        engine.free.set()
        assert [one.result().json()["choices"][0]["message"]["content"] for one in first] == ["fine"] * MOST
    assert ask(False).status_code == 200, "their places are free again"


def test_a_burst_on_everything_else_is_served_in_turn(fault: Fault) -> None:
    pair = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "labeled_budget": 500}
    hardware = {"device": "cuda", "devices": 1, "name": "H100", "memory_gib": 80, "cpu_threads": 8}
    http = fault.client.http
    calls: list[Callable[[int], httpx.Response]] = [
        lambda n: http.post("/plans", json={**pair, "hardware": hardware, "seed": n // 8}, timeout=GENEROUS_S),
        lambda _: http.get("/files", timeout=GENEROUS_S),
        lambda n: http.post("/files", files={"file": b'{"problem": "%d"}\n' % n}, timeout=GENEROUS_S),
        lambda _: http.get("/jobs/none", timeout=GENEROUS_S),
    ]
    with ThreadPoolExecutor(60) as callers:
        answers = list(callers.map(lambda n: calls[n % 4](n), range(240)))
    assert [answer.status_code for answer in answers] == [201, 200, 200, 404] * 60
    assert len(uploads(fault)) == 61
    assert len(http.get("/plans", params={"limit": 100}).json()["data"]) == 30


@contextmanager
def no_connection_left(client: TestClient) -> Iterator[None]:
    """All of the service's connections to the database are taken by somebody else."""
    pool = client.app.state.context.db.engine.pool  # type: ignore[attr-defined]
    # Half a minute otherwise, for each request.
    pool._timeout = 0.2
    taken = []
    with suppress(NoConnection):
        while True:
            taken.append(pool.connect())
    assert len(taken) > 5
    yield
    for connection in taken:
        connection.close()


def test_more_requests_than_the_database_has_connections_are_told_when_to_come_again(
    database_url: str, tmp_path: Path
) -> None:
    settings = Settings(state_dir=tmp_path / "state", database_url=database_url, allow_hub=False)
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        with no_connection_left(client):
            for path in ("/v1/files", "/v1/jobs", "/healthz"):
                answer = client.get(path)
                refused(answer, 503, "database_unavailable")
                assert int(answer.headers["retry-after"]) > 0
        assert client.get("/v1/files").status_code == 200
