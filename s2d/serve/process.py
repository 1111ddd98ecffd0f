"""One server process: start until it has generated a token, notice its death, stop it with all its children."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import httpx
import psutil

from s2d.errors import Unavailable
from s2d.serve.engine import Launch

log = logging.getLogger(__name__)

GUARD = Path(__file__).with_name("guard.py")
GRACE_S = 10.0
POLL_S = 0.1
LOG_TAIL_BYTES = 8192
#: One token shows what a green health check does not: that weights, tokenizer, template and kernels work together.
PROBE = {"messages": [{"role": "user", "content": "1"}], "max_tokens": 1, "temperature": 0}


class ServerFailed(Unavailable):
    """A student's server did not come up; the message ends with its last log lines."""

    code = "student_server_failed"


class ServerProcess:
    """A server in its own session. It ends with this process, however that ends (see `guard`). Thread-safe.

    It can be started once. The log of the start before is kept as `<log_path>.1`.
    """

    def __init__(self, launch: Launch, log_path: Path, start_timeout_s: float) -> None:
        self.launch = launch
        self.log_path = log_path
        self._start_timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False
        self._lock = threading.Lock()

    def start(self) -> None:
        """Blocks until a token has been generated. Raises ServerFailed, and then nothing is left running."""
        began = time.monotonic()
        self._spawn()
        try:
            self._wait_until_ready(began + self._start_timeout_s)
        except BaseException:
            self.stop()
            raise
        log.info(
            "server %s on port %d ready after %.1f s", self.log_path.stem, self.launch.port, time.monotonic() - began
        )

    def alive(self) -> bool:
        """Whether the process runs. Does not reap it, so that its group id stays ours until `stop`."""
        if self._process is None or self._process.returncode is not None:
            return False
        return psutil.Process(self._process.pid).status() != psutil.STATUS_ZOMBIE

    def stop(self) -> None:
        """SIGTERM to the group, at most `GRACE_S` seconds, SIGKILL to what is left of it. Also aborts a start."""
        with self._lock:
            self._stopped = True
            if self._process is None or self._process.returncode is not None:
                return
            _signal_group(self._process.pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while self.alive() and time.monotonic() < deadline:
                time.sleep(POLL_S)
            _signal_group(self._process.pid, signal.SIGKILL)
            self._process.wait()
        log.info("server %s stopped", self.log_path.stem)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines that the server wrote, at most `LOG_TAIL_BYTES` bytes; none if somebody took the log away."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except FileNotFoundError:
            return f"({self.log_path} is gone)"

    def _spawn(self) -> None:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))
        with self._lock, self.log_path.open("wb") as output:
            if self._stopped:
                raise ServerFailed("the server was stopped before it started: try again")
            try:
                self._process = self._popen(output)
            except OSError as error:
                where = self.launch.cwd
                raise ServerFailed(
                    f"the student's server cannot be started on this host in {where}: {error}"
                ) from error

    def _popen(self, output: IO[bytes]) -> subprocess.Popen[bytes]:
        # This process' own settings hold the database's and the broker's passwords, which no server needs.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("S2D_")}
        return subprocess.Popen(
            [sys.executable, "-P", str(GUARD), str(os.getpid()), *self.launch.command],
            cwd=self.launch.cwd,
            env=inherited | self.launch.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _wait_until_ready(self, deadline: float) -> None:
        # Loopback never goes through a proxy, whatever the environment says.
        with httpx.Client(base_url=self.launch.base_url, trust_env=False) as client:
            while not self._is_ready(client, deadline):
                if not self.alive():
                    raise ServerFailed(f"the student's server ended while starting.\n{self.log_tail()}")
                if time.monotonic() > deadline:
                    limit = f"{self._start_timeout_s:g} s"
                    raise ServerFailed(f"the student's server was not ready within {limit}.\n{self.log_tail()}")
                time.sleep(POLL_S)

    def _is_ready(self, client: httpx.Client, deadline: float) -> bool:
        try:
            if not client.get(self.launch.health_path, timeout=5).is_success:
                return False
            left = max(1.0, deadline - time.monotonic())
            reply = client.post("/v1/chat/completions", json=PROBE | {"model": self.launch.model}, timeout=left)
        except httpx.TransportError:
            return False
        if not reply.is_success or reply.json()["usage"]["completion_tokens"] < 1:
            raise ServerFailed(
                f"the student's server generates no token ({reply.status_code}: {reply.text[:300]}).\n{self.log_tail()}"
            )
        return True


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        log.debug("process group %d has ended already", pid)
