"""The stage processes of this host. A launcher starts its own in sessions of their own, which a group's signal does not
reach, and which are nobody's descendants once it is gone; so they are found by the task file that they were given."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from s2d.errors import StageFailure

POLL_S = 0.02
#: After SIGKILL: what is still there then hangs in the kernel.
PATIENCE_S = 60.0


def stage_processes(wanted: Callable[[Path], bool]) -> list[psutil.Process]:
    """Those whose task file is wanted, launchers too; a stage command of the operator's own is not among them."""
    found = []
    # Not `process_iter`, which remembers processes: one whose number has been given again could not be killed.
    for pid in psutil.pids():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            one = psutil.Process(pid)
            command = one.cmdline() or [""]
            if any(part.startswith("s2d.stages") for part in command) and wanted(Path(command[-1])):
                found.append(one)
    return found


def kill_tree(pid: int) -> list[psutil.Process]:
    """End a process, what descends from it, and its group, with SIGKILL, which also ends what is stopped.

    Returns:
        What was signalled, but for the process itself.
    """
    below: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        below = psutil.Process(pid).children(recursive=True)
    # The process leads its own session, so its group's number is its own, also after it has ended.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    kill(below)
    return below


def kill(processes: Iterable[psutil.Process]) -> None:
    for one in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def await_end(processes: Iterable[psutil.Process]) -> None:
    """Wait for what was killed.

    Raises:
        StageFailure: code "lost_worker"; one is still there after `PATIENCE_S`.
    """
    deadline = time.monotonic() + PATIENCE_S
    for one in processes:
        while alive(one):
            if time.monotonic() > deadline:
                raise StageFailure(f"Process {one.pid} of the stage could not be ended.", code="lost_worker")
            time.sleep(POLL_S)


def alive(process: psutil.Process | None) -> bool:
    """Whether it still runs; a zombie does not."""
    try:
        return process is not None and process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
