"""The API starts fast and without the libraries that train."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "matplotlib", "sympy", "numpy")


def test_the_api_imports_nothing_heavy() -> None:
    code = "import sys; from api.app import create_app; create_app().openapi(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)


def test_the_api_is_up_within_three_seconds(tmp_path: Path) -> None:
    """A first start: state folder, migrations and first key included. The better of two, as the first may have to
    compile."""
    assert min(seconds_until_up(tmp_path / name) for name in ("first", "second")) < 3.0


def seconds_until_up(state_dir: Path) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    began = time.monotonic()
    server = subprocess.Popen(command, env=os.environ | {"S2D_STATE_DIR": str(state_dir)}, **quiet)
    try:
        while not is_up(port):
            assert server.poll() is None
            assert time.monotonic() - began < 60
            time.sleep(0.02)
        return time.monotonic() - began - seconds_without_a_core(server.pid)
    finally:
        server.terminate()
        server.wait(10)


def is_up(port: int) -> bool:
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5, trust_env=False)
    except httpx.TransportError:
        return False
    return bool(answer.json()["status"] == "ok")


def seconds_without_a_core(pid: int) -> float:
    """How long the process was ready to run while others had the cores, so that a busy machine fails no test."""
    path = Path(f"/proc/{pid}/schedstat")
    return int(path.read_text().split()[1]) / 1e9 if path.exists() else 0.0
