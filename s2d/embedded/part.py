"""One part of the service: a process in its own group with a log file. Not thread-safe."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from s2d.serve.process import GUARD

POLL_S = 0.05
LOG_TAIL_BYTES = 8192


@dataclass(frozen=True)
class Command:
    """What to run. `environment` is added to this process' own; `grace_s` is from SIGTERM to SIGKILL."""

    name: str
    argv: tuple[str, ...]
    environment: dict[str, str]
    cwd: Path
    grace_s: float


class Part:
    """A process that can be started again after it died. It ends with this process, however that ends (see guard)."""

    def __init__(self, command: Command, log_dir: Path) -> None:
        self.command = command
        self.log_path = log_dir / f"{command.name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        return self.command.name

    @property
    def pid(self) -> int | None:
        """Of the guard that leads the part's group; None while it does not run."""
        return None if self._process is None else self._process.pid

    def keep_old_log(self) -> None:
        """Begin a new log; the one of the run before stays as `<name>.log.1`."""
        if self.log_path.exists():
            self.log_path.replace(self.log_path.with_name(self.log_path.name + ".1"))

    def start(self) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(GUARD), str(os.getpid()), *self.command.argv],
                cwd=self.command.cwd,
                env=os.environ | self.command.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Does not reap the process, so that its group id stays ours until `end`."""
        if self._process is None:
            return False
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._process.pid, flags) is None

    def terminate(self) -> None:
        """Ask the group to end; returns at once."""
        self.signal(signal.SIGTERM)

    def signal(self, number: signal.Signals) -> None:
        """To the whole group, if there is one."""
        if self._process is not None:
            os.killpg(self._process.pid, number)

    def wait(self, deadline: float) -> None:
        """Until it has ended or the monotonic clock shows `deadline`."""
        while self.alive() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def end(self) -> int | None:
        """Kill what is left of the group and reap it; the exit code, None when it does not run."""
        if self._process is None:
            return None
        process, self._process = self._process, None
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()

    def stop(self) -> None:
        """SIGTERM, at most `grace_s`, then SIGKILL; also when this is interrupted."""
        try:
            self.terminate()
            self.wait(time.monotonic() + self.command.grace_s)
        finally:
            self.end()

    def log_tail(self, lines: int = 15) -> str:
        """The last lines of the log, at most `LOG_TAIL_BYTES` bytes."""
        with self.log_path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - LOG_TAIL_BYTES))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
