"""Run one stage in this process: `python -m s2d.stages TASK.json`.

Exit status: 0 with `result.json` written; 75 when told to stop and resumable; 1 with `failure.json` that names the
reason; 74 when the disk is too full for that file.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from s2d.atomic import make_durable, sync, write_atomic
from s2d.errors import S2DError, is_disk_full
from s2d.observe import OFF, Attributes, ObserveSettings, open_tracing, set_up
from s2d.plan.document import Stage, Training
from s2d.plan.flops import Compute
from s2d.runner.events import read_events
from s2d.runner.exclusive import Superseded
from s2d.runner.layout import JobLayout
from s2d.runner.task import EXIT_DISK_FULL, EXIT_INTERRUPTED, StageError, StageResult, StageTask
from s2d.stages.checkpoints import MANIFEST
from s2d.stages.peak import peak_memory_gib
from s2d.stages.runtime import Interrupted, StageRuntime

_log = logging.getLogger("s2d.stages")

#: What a stage does, given its surroundings.
Entry = Callable[[StageRuntime], StageResult]


def program(arguments: list[str], entry: Callable[[Stage], Entry] | None = None) -> int:
    """`main` as a process of its own: with logs that tell the job, and a span that goes on with the job's trace."""
    # A library that crashes leaves every thread's stack in the log, see `s2d.runner.child`.
    faulthandler.enable()
    task = _task(arguments)
    settings = ObserveSettings()
    set_up(settings, "stage", job_id=task.job_dir.name, epoch=task.epoch, stage=task.stage)
    # One span for a stage, however many processes it has.
    tracing = open_tracing(settings, "s2d-stage") if _rank() == 0 else OFF
    about: Attributes = {"s2d.job.id": task.job_dir.name, "s2d.stage": task.stage, "s2d.attempt": task.attempt}
    with (
        closing(tracing),
        tracing.span("stage process", parent=os.environ.get("TRACEPARENT"), attributes=about) as span,
    ):
        status = main(arguments, entry)
        span.set({"process.exit.code": status})
        if status not in (0, EXIT_INTERRUPTED):
            span.fail("The stage failed; its log has the reason.")
    return status


def main(arguments: list[str], entry: Callable[[Stage], Entry] | None = None) -> int:
    """Args:
    entry: chooses what to do for a stage; None: the algorithms of this room."""
    task = _task(arguments)
    try:
        _run(StageRuntime(task, _rank()), entry or _entry)
    except (Interrupted, Superseded):
        return EXIT_INTERRUPTED
    except Exception as err:
        _log.exception("%s failed", task.stage)
        return _fail(JobLayout(task.job_dir).stage(task.stage), err)
    return 0


def _task(arguments: list[str]) -> StageTask:
    return StageTask.model_validate_json(Path(arguments[0]).read_text())


def _rank() -> int:
    return int(os.environ.get("RANK", "0"))


def _run(runtime: StageRuntime, entry: Callable[[Stage], Entry]) -> None:
    runtime.watch()
    runtime.emit("message", "loading libraries and models")
    started = time.monotonic()
    result = entry(runtime.stage)(runtime)
    if runtime.rank == 0:
        seconds = seconds_before(runtime) + time.monotonic() - started
        compute = Compute(runtime.plan.stages, runtime.plan.teacher, runtime.plan.student)
        spent = compute.flops(runtime.stage, result.tokens + result.prompt_tokens, result.data.get("teacher_tokens"))
        peak = peak_memory_gib(runtime.plan.hardware.device)
        measured = {"seconds": seconds, "flops": spent, "peak_memory_gib": round(peak, 4)}
        final = result.model_copy(update=measured)
        _bring_to_disk(runtime)
        write_atomic(runtime.folder / "result.json", final.model_dump_json(indent=1))


def _bring_to_disk(runtime: StageRuntime) -> None:
    """What the result vouches for: after it this stage is never run again, and its checkpoints are deleted.

    Models, rollouts and evaluations were brought there when they were written.
    """
    layout = runtime.layout
    # Checkpoints have hashes, and serve nobody from now on.
    make_durable(runtime.folder, without=("checkpoints",))
    for path in (layout.ledger, runtime.folder.parent, layout.root):
        sync(path)


def seconds_before(runtime: StageRuntime) -> float:
    """Time that earlier attempts at this stage took, from their first event to their last."""
    spans = []
    for path in runtime.folder.glob("events-*.jsonl"):
        times = [event["at"] for event in read_events(path)]
        if path.name != runtime.task.events_name and times:
            spans.append(times[-1] - times[0])
    return sum(spans)


def _entry(stage: Stage) -> Entry:
    """The stage's function; imported here so that an evaluation does not load the trainers."""
    if isinstance(stage, Training) and stage.steps == 0:
        from s2d.stages import unchanged

        return unchanged.run
    match stage.kind:
        case "teacher_rl" | "student_rl" | "direct_grpo":
            from s2d.stages import grpo

            return grpo.run
        case "teacher_rollouts":
            from s2d.stages import teacher_rollouts

            return teacher_rollouts.run
        case "warmup":
            from s2d.stages import warmup

            return warmup.run
        case "opd":
            from s2d.stages import opd

            return opd.run
        case "select":
            from s2d.stages import select

            return select.run
        case "evaluate":
            from s2d.stages import evaluate

            return evaluate.run


def _fail(folder: Path, err: Exception) -> int:
    """Leave the reason; returns the exit status.

    In a launch of several an unknown error is most often only the absence of another process: it leaves none, and the
    runner takes it for a crash to resume from.
    """
    code = _code(err)
    if code == "disk_full":
        # A checkpoint without a manifest is of no use, and without its space the reason could not be written.
        for part in folder.glob("checkpoints/checkpoint-*"):
            if not (part / MANIFEST).exists():
                shutil.rmtree(part, ignore_errors=True)
    error = StageError(code=code, message=str(err) or repr(err), step=getattr(err, "details", {}).get("step"))
    if code != "stage_failed" or os.environ.get("WORLD_SIZE", "1") == "1":
        try:
            write_atomic(folder / "failure.json", error.model_dump_json())
        except OSError as unwritten:
            if not is_disk_full(unwritten):
                raise
            # An exit status needs no room.
            return EXIT_DISK_FULL
    return 1


def _code(err: Exception) -> str:
    if isinstance(err, S2DError):
        return err.code
    if is_disk_full(err):
        return "disk_full"
    # On CPU torch says so in words alone.
    if isinstance(err, MemoryError) or type(err).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(err):
        return "out_of_memory"
    # What torch says when the weights that it draws from are no numbers any more.
    if "probability tensor contains either" in str(err):
        return "nan_loss"
    return "stage_failed"


if __name__ == "__main__":
    sys.exit(program(sys.argv[1:]))
