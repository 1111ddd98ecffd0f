"""From one claim of a job to the next: what the last one left is ended, told and tidied before all else."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from s2d.atomic import make_folder, sync, write_atomic
from s2d.events import NewEvent
from s2d.runner.exclusive import Holder, holder, join, taken_over, this_host
from s2d.runner.layout import JobLayout
from s2d.runner.retention import TRASH
from s2d.runner.task import process_id

Tell = Callable[[list[NewEvent]], None]


def hand_over(
    layout: JobLayout,
    epoch: int | None,
    missed: Iterable[list[NewEvent]],
    tell: Tell,
    check: Callable[[], None],
    *,
    last_patience_s: float | None = None,
) -> int:
    """No process of an earlier claim is alive after this, what it wrote is told, and no half-written file is left.

    Args:
        epoch: the new claim's, see `taken_over`.
        missed: what stages wrote and the earlier claim did not come to tell; read once the last writer is gone.
        check: called while waiting; what it raises ends the wait.
        last_patience_s: see `taken_over`.

    Returns:
        The epoch for the new claim's stages.

    Raises:
        Superseded, StageFailure: see `taken_over`.
    """
    make_folder(layout.root)
    with taken_over(layout, epoch, check, last_patience_s) as newest:
        # Nobody is writing now: what a kill left half-written will never be renamed into its place.
        for half in _half_written(layout.root):
            half.unlink(missing_ok=True)
        for events in missed:
            tell(events)
        tell_end(layout, tell)
    return newest


def _half_written(root: Path) -> Iterator[Path]:
    """What `write_atomic` leaves when it is killed. A janitor may be deleting meanwhile, so folders may vanish, which
    `os.walk` takes for empty; what was set aside for deletion is left to it."""
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(TRASH)]
        for name in files:
            if name.startswith(".") and name.endswith(".tmp") and not name.startswith(TRASH):
                yield Path(folder, name)


def tell_start(layout: JobLayout, tell: Tell, stage: str, attempt: int, pid: int, epoch: int) -> None:
    """Written down first: whoever comes after a death in between must know whom to end.

    Raises:
        Superseded: a newer claim has the job, whose process must not be written over.
    """
    process = Holder(stage=stage, attempt=attempt, host=this_host(), process=process_id(pid))
    with join(layout, epoch):
        write_atomic(layout.holder, process.model_dump_json())
    tell([_event(process, "started", f"process {pid} started on {process.host}")])


def tell_end(layout: JobLayout, tell: Tell, status: int | None = None, *, epoch: int | None = None) -> None:
    """The end of the process that was started last, by whoever knows of it; nothing when it was told already.

    Args:
        epoch: of the claim that ran it; None: whoever takes the job over, and has its lock.

    Raises:
        Superseded: a newer claim has the job, and has told it.
    """
    last = holder(layout)
    if last is None:
        return
    message = f"process {last.process.pid} ended" + ("" if status is None else f" with status {status}")
    tell([_event(last, "ended", message, status=status)])
    with nullcontext() if epoch is None else join(layout, epoch):
        layout.holder.unlink()
        sync(layout.root)


def _event(process: Holder, state: str, message: str, **more: Any) -> NewEvent:
    data = {"state": state, "pid": process.process.pid, "host": process.host, "attempt": process.attempt, **more}
    return NewEvent(type="process", stage=process.stage, message=message, data=data)
