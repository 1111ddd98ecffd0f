"""A grading program as the pool sees it: started, written to, read from, killed.

The program (`s2d.verifiers.worker`) is no fork and no `multiprocessing` child, so it is safe beside CUDA and threads
and the caller's `__main__`, which may import torch, is not imported again.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections import deque
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from s2d.verifiers.base import VerifierSpec

#: (completion, label)
Pair = tuple[str, str]

#: Seconds for a worker to load its verifier.
START_DEADLINE_S = 60.0


class WorkerProcess:
    """One worker program, its socket, and the pairs that it has not answered yet.

    `due`: when (`time.monotonic`) its next message must be here; None while it is idle.
    """

    def __init__(self, spec: VerifierSpec) -> None:
        ours, theirs = socket.socketpair()
        with theirs, ours:
            self.process = subprocess.Popen(
                _command(theirs.fileno(), spec),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=_environment(),
            )
            self.connection: Connection[bytes, bytes] = Connection(ours.detach())
        self.pending: deque[Pair] = deque()
        self.due: float | None = time.monotonic() + START_DEADLINE_S

    @property
    def idle(self) -> bool:
        return self.due is None

    def overdue(self) -> bool:
        return self.due is not None and time.monotonic() >= self.due

    def send(self, pairs: list[Pair], deadline_s: float) -> None:
        self.connection.send_bytes(json.dumps(pairs).encode())
        self.pending.extend(pairs)
        self.due = time.monotonic() + deadline_s

    def receive(self) -> Literal["ready"] | tuple[Literal["ok", "error"], float | str]:
        message: Literal["ready"] | tuple[Literal["ok", "error"], float | str] = json.loads(
            self.connection.recv_bytes()
        )
        return message

    def kill(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.wait()


def _command(descriptor: int, spec: VerifierSpec) -> list[str]:
    # -P: a file in the working folder must not shadow a module.
    return [sys.executable, "-P", "-m", "s2d.verifiers.worker", str(descriptor), spec.model_dump_json()]


def _environment() -> dict[str, str]:
    """The environment in which a worker finds this very s2d, installed or not; no secrets beside untrusted text."""
    root = str(Path(__file__).resolve().parents[2])
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("S2D_", "HF_TOKEN"))}
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
