"""At most one stage process of a job is alive, whoever was killed, stopped or asleep before.

The heartbeat's patience (see `worker.supervisor`) already ends an orphan before its job can be claimed again. This is
the second guard, for a process that could not act on it because it was itself stopped: every stage process holds a
shared lock on one file of the job, which the kernel releases however the process ends, and the file names the newest
epoch. A claim waits for the lock, kills what still holds it on this host, and writes its own epoch; a stage process of
an older epoch then refuses to begin.

Promises nothing on a file system without `flock` between hosts; there the heartbeat alone stands.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable, Iterator
from typing import IO

import psutil
from pydantic import BaseModel, ConfigDict

from s2d.errors import StageFailure
from s2d.runner.layout import JobLayout
from s2d.runner.processes import kill, kill_tree, stage_processes
from s2d.runner.task import ProcessId, same_process

POLL_S = 0.1
#: An orphan ends itself in less; what is still there then is stopped or hangs in the kernel.
PATIENCE_S = 5.0
#: After SIGKILL: then the job is given back, or fails, rather than have two trainers.
LAST_PATIENCE_S = 60.0


class Superseded(Exception):
    """A newer claim has the job."""


class StillHeld(Superseded):
    """What an earlier claim left lives where this one cannot end it: the job is for a later claim."""


class Holder(BaseModel):
    """The stage process that was started last; its file is taken away when its end has been told."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: str
    attempt: int
    host: str
    process: ProcessId


@contextlib.contextmanager
def taken_over(
    layout: JobLayout, epoch: int | None, check: Callable[[], None], last_patience_s: float | None = None
) -> Iterator[int]:
    """Wait until no stage process of an earlier claim is alive, and fence them off: one that had only been started, and
    not come to its lock, is killed here, or refuses to begin. Until it is left nobody else takes the job over.

    Args:
        epoch: the claim's; None: one more than the last (a local run, whose folder is locked otherwise).
        check: called while waiting; what it raises ends the wait.
        last_patience_s: instead of `LAST_PATIENCE_S`, by somebody who comes again.

    Yields:
        The epoch, for the stages of this claim.

    Raises:
        Superseded: a newer claim was here.
        StillHeld: a stage process of another host is alive, or another worker is taking the job over and does not
            finish.
        StageFailure: code "lost_worker"; a stage process of this host could not be ended.
    """
    with _open(layout) as file:
        _wait_for_all(file, layout, epoch, check, LAST_PATIENCE_S if last_patience_s is None else last_patience_s)
        _kill(layout)
        now = 1 + _newest(file) if epoch is None else epoch
        file.truncate(0)
        file.write(str(now))
        file.flush()
        os.fsync(file.fileno())
        yield now


def join(layout: JobLayout, epoch: int) -> IO[str]:
    """Called by each stage process; the file that it returns is to be kept open until the process ends.

    Raises:
        Superseded: a newer claim has the job: this process must not begin.
    """
    file = _open(layout)
    fcntl.flock(file, fcntl.LOCK_SH)
    if (newest := _newest(file)) != epoch:
        file.close()
        raise Superseded(f"epoch {newest} has the job, this is {epoch}")
    return file


def free(layout: JobLayout) -> bool:
    """Whether no stage process is alive and nobody is taking the job over."""
    with _open(layout) as file:
        return _locked(file)


def holder(layout: JobLayout) -> Holder | None:
    """The last stage process whose end has not been told."""
    with contextlib.suppress(FileNotFoundError):
        return Holder.model_validate_json(layout.holder.read_text())
    return None


def this_host() -> str:
    return socket.gethostname()


def _open(layout: JobLayout) -> IO[str]:
    return layout.trainer_lock.open("a+")


def _wait_for_all(
    file: IO[str], layout: JobLayout, epoch: int | None, check: Callable[[], None], last_patience_s: float
) -> None:
    began, killed = time.monotonic(), False
    while not _locked(file):
        # Whoever holds it may be a newer claim's process, which is none of ours to kill.
        _refuse_older(file, epoch)
        check()
        waited = time.monotonic() - began
        if waited > PATIENCE_S and not killed:
            killed = True
            _leave_to_its_host(layout)
            _kill(layout)
        if waited > PATIENCE_S + last_patience_s:
            _give_up(layout)
        time.sleep(POLL_S)
    _refuse_older(file, epoch)


def _leave_to_its_host(layout: JobLayout) -> None:
    """Such a process is frozen, or its host is without power and a file server has not given up its locks yet. Nothing
    can be done about it from here, and a worker that waited for it would be kept from other jobs."""
    last = holder(layout)
    if last is not None and last.host != this_host():
        raise StillHeld(f"process {last.process.pid} of {last.host} still has the job's lock")


def _give_up(layout: JobLayout) -> None:
    last = holder(layout)
    if last is not None and same_process(last.process) is not None:
        raise StageFailure(f"A stage process of an earlier claim is still alive: {last}.", code="lost_worker")
    if left := _stage_processes(layout):
        raise StageFailure(f"Stage processes of an earlier claim are still alive: {left}.", code="lost_worker")
    # No stage: a worker that was frozen while it took the job over. It comes back, or its host ends it.
    raise StillHeld("another worker began to take the job over and has not finished")


def _newest(file: IO[str]) -> int:
    file.seek(0)
    return int(file.read() or 0)


def _refuse_older(file: IO[str], epoch: int | None) -> None:
    if epoch is not None and epoch < (newest := _newest(file)):
        raise Superseded(f"epoch {newest} has the job, this is {epoch}")


def _locked(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill(layout: JobLayout) -> None:
    """End what is left of the job on this host. A launcher may be gone while a process that it started is frozen."""
    last = holder(layout)
    if last is not None and last.host == this_host() and same_process(last.process) is not None:
        kill_tree(last.process.pid)
    kill(_stage_processes(layout))


def _stage_processes(layout: JobLayout) -> list[psutil.Process]:
    root = (layout.root / "stages").resolve()
    return stage_processes(lambda task: root in task.resolve().parents)
