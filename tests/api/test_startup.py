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
    """A first start: state folder, migrations and first key included. The best of three, as others use the cores too."""
    assert min(seconds_until_up(tmp_path / f"state{attempt}") for attempt in range(3)) < 3.0


def seconds_until_up(state_dir: Path) -> float:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "--factory", "api.app:create_app", "--port", str(port)]
    began = time.monotonic()
    server = subprocess.Popen(command, env=os.environ | {"S2D_STATE_DIR": str(state_dir)}, stderr=subprocess.DEVNULL)
    try:
        while True:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/healthz", timeout=5, trust_env=False)
                break
            except httpx.TransportError:
                assert server.poll() is None
                assert time.monotonic() - began < 30
                time.sleep(0.02)
        assert answer.json()["status"] == "ok"
        return time.monotonic() - began
    finally:
        server.terminate()
        server.wait(10)
