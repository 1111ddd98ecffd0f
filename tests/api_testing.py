"""What the API's tests share beside fixtures."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from typing import Any

import httpx
import uvicorn
from fastapi import FastAPI

#: Planned from the catalog, so that no network is needed.
PLAN = {
    "teacher": "Qwen/Qwen3-8B",
    "student": "Qwen/Qwen3-1.7B",
    "hardware": {"device": "cuda", "devices": 1, "name": "H100", "memory_gib": 80, "cpu_threads": 8},
}


def jsonl(rows: int) -> bytes:
    """A file of so many labeled problems."""
    return b"".join(
        json.dumps({"problem": f"What is {n} + {n}?", "answer": str(2 * n)}).encode() + b"\n" for n in range(rows)
    )


class Server(uvicorn.Server):
    """A server in a thread of this process, on a port of its own."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self.run, kwargs={"sockets": [self._socket]})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> Server:
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self.started and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.started
        return self

    def __exit__(self, *_: object) -> None:
        self.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()


def every_operation(app: FastAPI) -> list[tuple[str, str]]:
    """Method and address of each endpoint, with `x` for every id."""
    paths = app.openapi()["paths"]
    return [(method.upper(), re.sub(r"{\w+}", "x", path)) for path, methods in paths.items() for method in methods]


def assert_problem(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """The answer is an error in the one shape."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-request-id"]
    body: dict[str, Any] = response.json()
    assert body.keys() - {"details"} == {"type", "title", "status", "detail", "code", "error"}
    assert body["status"] == status
    assert body["type"] == f"urn:s2d:problem:{body['code']}"
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert (body["error"]["message"], body["error"]["code"]) == (body["detail"], body["code"])
    assert body["detail"]
    assert body["title"]
    if code is not None:
        assert body["code"] == code
    return body
