"""A disk without room: it is told from other errors, and by an exit status where not even the reason could be written.

Real full file systems are for `tests/faults/test_training.py`.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import labels, plan_for

from s2d.errors import StageFailure, is_disk_full
from s2d.runner.layout import JobLayout
from s2d.runner.local import _LocalHost
from s2d.runner.pipeline import Pipeline
from s2d.runner.task import EXIT_DISK_FULL, StageTask, this_process
from s2d.stages import __main__ as stages
from s2d.stages.runtime import StageRuntime

FULL = [errno.ENOSPC, errno.EDQUOT]


def no_room(number: int) -> OSError:
    return OSError(number, os.strerror(number), "events-001.jsonl")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The task file of a first stage, which this process runs."""
    monkeypatch.setattr(StageRuntime, "watch", lambda _: None)
    plan = plan_for(labels(tmp_path / "labels.jsonl"))
    layout = JobLayout(tmp_path / "job")
    folder = layout.stage("teacher_rl")
    folder.mkdir(parents=True)
    layout.plan.write_text(plan.model_dump_json())
    task = StageTask(job_dir=layout.root, stage="teacher_rl", attempt=1, models={}, supervisor=this_process())
    path = folder / "task.json"
    path.write_text(task.model_dump_json())
    return path


def run(task: Path, error: Exception) -> int:
    def fail(_: StageRuntime) -> Any:
        raise error

    return stages.main([str(task)], lambda _: fail)


def refuse(error: Exception) -> Callable[..., None]:
    def write(*_: object) -> None:
        raise error

    return write


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (no_room(errno.ENOSPC), True),
        (no_room(errno.EDQUOT), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), True),
        (no_room(errno.EIO), False),
        (ValueError("no"), False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(error: Exception, full: bool, task: Path) -> None:
    assert is_disk_full(error) == full
    assert run(task, error) == 1
    left = json.loads((task.parent / "failure.json").read_text())
    assert left["code"] == ("disk_full" if full else "stage_failed")


@pytest.mark.parametrize("number", FULL)
def test_a_stage_that_cannot_write_its_reason_says_so_with_its_status(
    number: int, task: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "write_atomic", refuse(no_room(number)))
    assert run(task, no_room(number)) == EXIT_DISK_FULL


def test_what_else_keeps_it_from_writing_is_not_taken_for_that(task: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "write_atomic", refuse(no_room(errno.EIO)))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        run(task, no_room(errno.ENOSPC))


@pytest.mark.parametrize(("status", "code"), [(EXIT_DISK_FULL, "disk_full"), (1, "stage_failed")])
def test_the_runner_takes_that_status_for_a_full_disk(status: int, code: str, tmp_path: Path) -> None:
    upload = labels(tmp_path / "rows.jsonl")
    command = [sys.executable, "-c", f"print('the last line'); raise SystemExit({status})"]
    host = _LocalHost(lambda _: None, lambda: False)
    pipeline = Pipeline(plan_for(upload), upload, JobLayout(tmp_path / "job"), host, command=lambda _: command)
    pipeline._take_over()
    with pytest.raises(StageFailure, match=f"status {status}") as caught:
        pipeline._run_child("teacher_rl")
    assert (caught.value.code, caught.value.details["stage"]) == (code, "teacher_rl")
    assert caught.value.details["log"] == ("the last line",)
