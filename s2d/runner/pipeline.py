"""The order of things in a job: split, stages, gates, report. A finished stage is never run twice.

The outcome is the same whether it runs in one go or is killed and started again: each stage resumes from its newest
valid checkpoint, and `result.json`, written last, says that a stage is done.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from s2d.atomic import write_atomic
from s2d.data.split import SplitReport, split
from s2d.errors import FAILURE_CODES, InvalidPlan, ModelRefused, S2DError, StageFailure
from s2d.events import NewEvent
from s2d.plan.document import ModelRole, Plan, StageKind, Training
from s2d.runner import child
from s2d.runner.child import ChildEnd, Wish
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageError, StageResult, StageTask

#: How often a stage whose process was killed from outside is started again within one claim of the job.
MAX_CRASHES = 3
REPORT_TIMEOUT_S = 300


class Host(Protocol):
    """Whoever runs the pipeline: takes its events, says when to stop, records what labels are spent on."""

    def events(self, events: list[NewEvent]) -> None: ...

    def wish(self) -> Wish: ...

    def spend(self, split: SplitReport) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How the job ended. `interrupted`: it was told to stop and can be resumed."""

    state: Literal["succeeded", "failed", "interrupted"]
    error: dict[str, Any] | None = None
    student: ModelRole | None = None
    report: Path | None = None


class _Stopped(Exception):
    """The host wants the pipeline to end."""


@dataclass
class Pipeline:
    plan: Plan
    rows: Path
    layout: JobLayout
    host: Host
    grace_s: float = 30.0
    heartbeat: Path | None = None
    heartbeat_timeout_s: float | None = None
    command: Callable[[int], list[str]] = field(default=child.stage_command)

    def run(self) -> Outcome:
        """Run what is not done yet. Raises only what the host raises; a stage's failure is an outcome."""
        try:
            self._prepare()
            for index, kind in enumerate(self.plan.kinds()):
                self._stage(index, kind)
        except _Stopped:
            return Outcome("interrupted")
        except S2DError as err:
            return Outcome("failed", error=failure(err), report=self._report())
        return Outcome("succeeded", student=self._student(), report=self._report())

    def _student(self) -> ModelRole:
        return "rl_student" if "student_rl" in self.plan.kinds() else "opd_student"

    def _prepare(self) -> None:
        self.layout.root.mkdir(parents=True, exist_ok=True)
        write_atomic(self.layout.plan, self.plan.model_dump_json(indent=2))
        report = self.layout.data / "split.json"
        if report.exists():
            done = SplitReport.model_validate_json(report.read_text())
        else:
            done = split(self.rows, _counts(self.plan), self.plan.data.split_seed, self.layout.data)
            write_atomic(report, done.model_dump_json())
        self.host.spend(done)

    def _stage(self, index: int, kind: StageKind) -> None:
        place = {"index": index, "count": len(self.plan.stages)}
        path = self.layout.result(kind)
        if not path.exists():
            if self.host.wish() != "run":
                raise _Stopped
            self._emit(kind, "running", **place)
            self._run_child(kind)
        result = StageResult.model_validate_json(path.read_text())
        # A file says that the success was told: a worker may be killed between the result and its event.
        told = path.with_name("told")
        if not told.exists():
            state = {"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens}
            self._emit(kind, "succeeded", **place, **state)
            told.touch()
        self._judge(result)

    def _run_child(self, kind: StageKind) -> None:
        crashes = 0
        while not self.layout.result(kind).exists():
            end = self._start(kind)
            # Whatever the exit status: a library that stumbles on its way out does not undo the result.
            if self.layout.result(kind).exists():
                return
            if end.interrupted or self.host.wish() != "run":
                raise _Stopped
            crashes += 1
            self._explain(kind, end, crashes)

    def _start(self, kind: StageKind) -> ChildEnd:
        folder = self.layout.stage(kind)
        (folder / "failure.json").unlink(missing_ok=True)
        task = StageTask(
            job_dir=self.layout.root,
            kind=kind,
            attempt=1 + len(list(folder.glob("events-*.jsonl"))),
            models=self._models(),
            supervisor=child.this_process(),
            heartbeat=self.heartbeat,
            heartbeat_timeout_s=self.heartbeat_timeout_s,
        )
        hardware = self.plan.hardware
        devices = hardware.devices if isinstance(self.plan.stage(kind), Training) else 1
        return child.run(
            task,
            command=self.command(devices),
            environment=child.environment(hardware.cpu_threads, devices if hardware.device == "cuda" else None),
            on_events=self.host.events,
            wish=self.host.wish,
            grace_s=self.grace_s,
        )

    def _models(self) -> dict[ModelRole, str]:
        base: dict[ModelRole, str] = {"base_teacher": self.plan.teacher.name, "base_student": self.plan.student.name}
        made = {stage.trains: stage.trains for stage in self.plan.stages if isinstance(stage, Training)}
        return base | {role: str(self.layout.model(role)) for role in made}

    def _explain(self, kind: StageKind, end: ChildEnd, crashes: int) -> None:
        """Try again when the process was killed from outside; else raise what it died of."""
        failure_file = self.layout.stage(kind) / "failure.json"
        if failure_file.exists():
            error = StageError.model_validate_json(failure_file.read_text())
            raise StageFailure(error.message, code=error.code, stage=kind, step=error.step, log=end.log_tail)
        # A launcher ends with status 1 when one of its processes was killed.
        killed = end.status < 0 or self.plan.hardware.devices > 1
        if not killed or crashes >= MAX_CRASHES:
            raise StageFailure(f"{_ending(end)}.", stage=kind, log=end.log_tail)
        message = f"{_ending(end)}; starting it again from its last checkpoint"
        self.host.events([NewEvent(type="message", level="warn", stage=kind, message=message)])
        # A machine short of memory kills again at once; give it a moment.
        time.sleep(crashes)

    def _judge(self, result: StageResult) -> None:
        if result.gate is None or result.gate.passed or self.plan.gates.on_failure == "continue":
            return
        raise StageFailure(result.gate.message, code=f"gate_{result.gate.gate}", stage=result.kind)

    def _emit(self, kind: StageKind, state: str, **data: Any) -> None:
        event = NewEvent(type="stage", stage=kind, message=f"{kind} {state}", data={"state": state, **data})
        self.host.events([event])

    def _report(self) -> Path | None:
        """Write the report in a process of its own: it loads a plotting library that a worker need not keep.

        A report that cannot be written costs no student: it is an error among the events, and can be made later with
        `python -m s2d.report`.
        """
        command = [sys.executable, "-m", "s2d.report", str(self.layout.root)]
        try:
            run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REPORT_TIMEOUT_S)
            trouble = None if run.returncode == 0 else run.stderr.strip()[-2000:]
        except subprocess.TimeoutExpired:
            trouble = f"it took more than {REPORT_TIMEOUT_S} s"
        if trouble is None:
            return self.layout.report / "report.json"
        message = f"The report could not be written: {trouble}"
        self.host.events([NewEvent(type="message", level="error", message=message)])
        return None


def _counts(plan: Plan) -> Mapping[Any, int]:
    labels = plan.data.labels
    return {
        "test": labels.test,
        "validation": labels.validation,
        "teacher_rl": labels.teacher_rl,
        "student_rl": labels.student_rl,
        "prompts": plan.data.bridge_prompts,
    }


def _ending(end: ChildEnd) -> str:
    if end.status < 0:
        return f"The stage's process was killed by signal {-end.status}"
    return f"The stage's process ended with status {end.status} and left no result"


def _code_of(err: S2DError) -> str:
    """The job's code for an error that was made for a request: models are looked at again when a job starts."""
    if isinstance(err, InvalidPlan | ModelRefused):
        return "model"
    return "data" if err.status < 500 else "stage_failed"


def failure(err: S2DError) -> dict[str, Any]:
    """The document that a failed job carries: code, message, stage, step, last log lines and what to do."""
    code = err.code if err.code in FAILURE_CODES else _code_of(err)
    return {
        "code": code,
        "message": err.message,
        "advice": FAILURE_CODES[code],
        "stage": err.details.get("stage"),
        "step": err.details.get("step"),
        "log": list(err.details.get("log", ())),
    }
