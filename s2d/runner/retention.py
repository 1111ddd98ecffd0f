"""What of a job's folder is needed no more, and how it goes.

Three kinds of leftovers. `spent` serves no resume, whatever the job does: checkpoints and teacher caches of stages that
have a result. `remains` may go once the job has ended: checkpoints that were set aside, files whose writing a kill cut
short. `resumable` are the checkpoints that an ended job would go on from; they go only beyond a limit (`beyond`).
Everything else stays: models, data, rollouts, evaluations, report, ledger, events, results, logs.

What goes is renamed first (`set_aside`), so that no resume ever meets half a checkpoint, and deleted after; what a
crash leaves between the two is `spent` at the next look.

Whether a job has ended is the caller's to know, and to hold while it sets aside `remains` and `resumable`. Does not
promise that the disk is below the budget at every moment: jobs that may still run are not counted, sizes are those of
files rather than blocks, and deleting takes its time.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from s2d.runner.layout import JobLayout

TRASH = ".trash-"


@dataclass(frozen=True)
class Leftover:
    """A folder or file that may go: of a stage, or (None) of the job itself. `bytes` is the sum of its files."""

    path: Path
    bytes: int
    stage: str | None


@dataclass(frozen=True)
class Ended:
    """An ended job, the seconds since then, and the checkpoints that resuming it would go on from."""

    job_id: str
    ended_s: float
    checkpoints: tuple[Leftover, ...]

    @property
    def bytes(self) -> int:
        return sum(one.bytes for one in self.checkpoints)


class Beyond(NamedTuple):
    """A job that may not keep its checkpoints, and the limit that it is beyond."""

    job: Ended
    limit: Literal["age", "budget"]


def spent(layout: JobLayout) -> list[Leftover]:
    """May go at any time, also beside a running trainer: that one works in a stage without a result."""
    found = _measured(layout.root.glob(f"{TRASH}*"))
    for stage in _stages(layout):
        paths = [*stage.glob(f"{TRASH}*"), *stage.glob(f"checkpoints/{TRASH}*")]
        if layout.result(stage.name).exists():
            paths += _folders([*_checkpoints(stage), *_quarantined(stage), stage / "teacher"])
        found += _measured(paths, stage.name)
    return found


def remains(layout: JobLayout) -> list[Leftover]:
    """May go once the job has ended. Temporary files beside plan, results and scores, not among data or rollouts."""
    found = _measured([*_temporary(layout.root), *_temporary(layout.evaluations)])
    for stage in _stages(layout):
        found += _measured(_temporary(stage), stage.name)
    for stage in _unfinished(layout):
        found += _measured(_folders(_quarantined(stage)), stage.name)
    return found


def resumable(layout: JobLayout) -> list[Leftover]:
    """May go once the job has ended and is beyond a limit: without them its unfinished stage starts anew."""
    return [one for stage in _unfinished(layout) for one in _measured(_folders(_checkpoints(stage)), stage.name)]


def beyond(jobs: Iterable[Ended], *, budget_bytes: float, max_age_s: float) -> list[Beyond]:
    """Whose resumable checkpoints go: of jobs past the age limit, then of those that ended first until the rest fits.

    A job keeps all of its checkpoints or none: the one before the newest is there in case the newest is damaged.
    """
    oldest_first = sorted((job for job in jobs if job.checkpoints), key=lambda job: job.ended_s, reverse=True)
    left = sum(job.bytes for job in oldest_first)
    chosen: list[Beyond] = []
    for job in oldest_first:
        if job.ended_s <= max_age_s and left <= budget_bytes:
            break
        chosen.append(Beyond(job, "age" if job.ended_s > max_age_s else "budget"))
        left -= job.bytes
    return chosen


def set_aside(leftover: Leftover) -> Path | None:
    """Give it a name that nobody looks for; returns its new place, or None when somebody else was first.

    Raises:
        OSError: it cannot be renamed.
    """
    path = leftover.path
    if path.name.startswith(TRASH):
        return path
    hidden = path.with_name(f"{TRASH}{uuid.uuid4().hex}-{path.name}")
    try:
        return path.rename(hidden)
    except FileNotFoundError:
        return None


def remove(hidden: Path) -> None:
    """Delete what was set aside. Where somebody else deletes it at the same time, a rest may wait for the next look.

    Raises:
        OSError: it cannot be deleted.
    """
    with contextlib.suppress(FileNotFoundError):
        if _is_folder(hidden):
            shutil.rmtree(hidden)
        else:
            hidden.unlink()


def _stages(layout: JobLayout) -> list[Path]:
    return sorted(_folders((layout.root / "stages").glob("*")))


def _unfinished(layout: JobLayout) -> list[Path]:
    return [stage for stage in _stages(layout) if not layout.result(stage.name).exists()]


def _checkpoints(stage: Path) -> Iterable[Path]:
    return sorted(stage.glob("checkpoints/checkpoint-*"))


def _quarantined(stage: Path) -> Iterable[Path]:
    return sorted(stage.glob("checkpoints/quarantine-*"))


def _temporary(folder: Path) -> Iterator[Path]:
    """What `write_atomic` leaves when it is killed."""
    return (path for path in folder.glob(".*.tmp") if path.is_file() and not path.name.startswith(TRASH))


def _folders(paths: Iterable[Path]) -> Iterator[Path]:
    return (path for path in paths if _is_folder(path))


def _is_folder(path: Path) -> bool:
    """What a link points to belongs to somebody else."""
    return path.is_dir() and not path.is_symlink()


def _measured(paths: Iterable[Path], stage: str | None = None) -> list[Leftover]:
    return [Leftover(path, _bytes(path), stage) for path in paths]


def _bytes(path: Path) -> int:
    """What vanishes while it is counted counts for nothing: another worker may be deleting it."""
    with contextlib.suppress(FileNotFoundError):
        if _is_folder(path):
            return sum(map(_bytes, path.iterdir()))
        return path.lstat().st_size
    return 0
