"""The order of things in a job: split, stages, gates, report. A finished stage is never run twice.

The outcome is the same whether it runs in one go or is killed and started again: each stage resumes from its newest
valid checkpoint, and `result.json`, written last, says that a stage is done.
"""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from s2d.atomic import write_atomic
from s2d.data.split import Role, SplitReport, split
from s2d.errors import FAILURE_CODES, InvalidPlan, ModelRefused, S2DError, StageFailure
from s2d.events import NewEvent
from s2d.observe import bind, span
from s2d.plan.document import Plan, Training
from s2d.plan.graph import WORKFLOW, Account, labels_read, made_by
from s2d.runner import child
from s2d.runner.child import ChildEnd, Wish
from s2d.runner.events import attempt_of, event_files, read_events
from s2d.runner.exclusive import StillHeld, Superseded
from s2d.runner.handover import hand_over, tell_end, tell_start
from s2d.runner.layout import JobLayout
from s2d.runner.ledger import Ledger
from s2d.runner.task import EXIT_DISK_FULL, StageError, StageResult, StageTask, this_process

#: So many processes of a stage may be killed from outside, one after the other, without any of them getting further.
MAX_CRASHES = 3
REPORT_TIMEOUT_S = 300
#: Before a job is tried again that another host still holds. A file server gives up a dead host's locks within two
#: minutes; who is frozen may be so for days, and each try is told.
HELD_WAIT_S = 120.0
#: Bytes without which a stage can tell nothing, not even why it ended.
LEAST_ROOM = 16_384


class Host(Protocol):
    """Whoever runs the pipeline: takes its events, says when to stop, records what labels are spent on."""

    @property
    def epoch(self) -> int | None:
        """Of the claim that runs the job; None where nobody claims jobs."""
        ...

    def missed(self, layout: JobLayout, stages: Iterable[str]) -> Iterable[list[NewEvent]]:
        """What stages wrote and an earlier claim did not come to store."""
        ...

    def events(self, events: list[NewEvent]) -> None: ...

    def wish(self) -> Wish: ...

    def spend(self, account: Account, role: str, labels: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """How the job ended. `interrupted`: it was told to stop, or could not begin, and can be resumed."""

    state: Literal["succeeded", "failed", "interrupted"]
    error: dict[str, Any] | None = None
    student: str | None = None
    report: Path | None = None
    wait_s: float = 0.0
    """Before it is of use to resume it."""


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
            self._take_over()
            self._prepare()
            for index, name in enumerate(self.plan.ids()):
                self._stage(index, name)
        except StillHeld as err:
            message = f"The job waits for what an earlier claim left: {err}."
            self.host.events([NewEvent(type="message", level="warn", message=message)])
            return Outcome("interrupted", wait_s=HELD_WAIT_S)
        except (_Stopped, Superseded):
            return Outcome("interrupted")
        except S2DError as err:
            return Outcome("failed", error=failure(err), report=self._report())
        return Outcome("succeeded", student=self.plan.product, report=self._report())

    def _take_over(self) -> None:
        missed = self.host.missed(self.layout, self.plan.ids())
        self._epoch = hand_over(self.layout, self.host.epoch, missed, self.host.events, self._check_wish)

    def _check_wish(self) -> None:
        if self.host.wish() != "run":
            raise _Stopped

    def _prepare(self) -> None:
        write_atomic(self.layout.plan, self.plan.model_dump_json(indent=2))
        self._ledger = Ledger(self.layout.ledger)
        report = self.layout.data / "split.json"
        if report.exists():
            self._split = SplitReport.model_validate_json(report.read_text())
        else:
            self._split = split(self.rows, row_counts(self.plan), self.plan.data.split_seed, self.layout.data)
            write_atomic(report, self._split.model_dump_json())

    def _stage(self, index: int, name: str) -> None:
        place = {"index": index, "count": len(self.plan.stages)}
        path = self.layout.result(name)
        if not path.exists():
            self._check_wish()
            self._spend(name)
            self._emit(name, "running", **place)
            with bind(stage=name), span(f"stage {name}", expected=(_Stopped,)):
                self._run_child(name)
        result = StageResult.model_validate_json(path.read_text())
        # A file says that the success was told: a worker may be killed between the result and its event.
        told = path.with_name("told")
        if not told.exists():
            state = {"steps": result.steps, "seconds": result.seconds, "tokens": result.tokens}
            self._emit(name, "succeeded", **place, **state)
            write_atomic(told, "")
        self._judge(result)

    def _spend(self, name: str) -> None:
        """Write down which labels this stage is about to read, before it can."""
        stage = self.plan.stage(name)
        account = Account(stage.arm, name)
        for role in labels_read(stage):
            labels = self._split.ids[cast(Role, role)]
            self.host.spend(account, role, labels)
            self._ledger.spend(account, role, labels)

    def _run_child(self, name: str) -> None:
        reached, crashes = 0, list[ChildEnd]()
        while not self.layout.result(name).exists():
            end = self._start(name)
            tell_end(self.layout, self.host.events, end.status, epoch=self._epoch)
            # Whatever the exit status: a library that stumbles on its way out does not undo the result.
            if self.layout.result(name).exists():
                return
            if end.interrupted or self.host.wish() != "run":
                raise _Stopped
            if self._changed(name, end):
                continue
            further = self._reached(name)
            crashes, reached = [*(crashes if further == reached else []), end], further
            self._again(name, crashes)

    def _start(self, name: str) -> ChildEnd:
        folder = self.layout.stage(name)
        (folder / "failure.json").unlink(missing_ok=True)
        task = StageTask(
            job_dir=self.layout.root,
            stage=name,
            attempt=1 + _attempts(folder),
            epoch=self._epoch,
            models=self._models(),
            micro_batch=_read_number(self.layout.micro_batch(name)),
            supervisor=this_process(),
            heartbeat=self.heartbeat,
            heartbeat_timeout_s=self.heartbeat_timeout_s,
        )
        hardware, devices = self.plan.hardware, self._devices(name)
        return child.run(
            task,
            command=self.command(devices),
            environment=child.environment(
                hardware.cpu_threads, devices if hardware.device == "cuda" else None, self.grace_s
            ),
            on_start=lambda pid: tell_start(self.layout, self.host.events, name, task.attempt, pid, self._epoch),
            on_events=self.host.events,
            wish=self.host.wish,
            grace_s=self.grace_s,
        )

    def _devices(self, name: str) -> int:
        return self.plan.hardware.devices if isinstance(self.plan.stage(name), Training) else 1

    def _models(self) -> dict[str, str]:
        base = {"base_teacher": self.plan.teacher.name, "base_student": self.plan.student.name}
        return base | {made: str(self.layout.model(made)) for stage in self.plan.stages if (made := made_by(stage))}

    def _reached(self, name: str) -> int:
        """Grows with every checkpoint and every piece of work that a process of the stage has told of."""
        files = event_files(self.layout.stage(name))
        told = (event for file in files for event in read_events(file) if event["type"] in ("checkpoint", "progress"))
        return len({(event["type"], event["message"], event["step"]) for event in told})

    def _changed(self, name: str, end: ChildEnd) -> bool:
        """Whether something was changed that lets the stage go on. False: nothing says what it died of.

        Raises:
            StageFailure: what it died of.
        """
        failure_file = self.layout.stage(name) / "failure.json"
        if failure_file.exists():
            error = StageError.model_validate_json(failure_file.read_text())
            if error.code == "out_of_memory" and self._halve(name):
                return True
            if error.code == "nan_loss" and self._roll_back(name, error):
                return True
            raise StageFailure(error.message, code=error.code, stage=name, step=error.step, log=end.log_tail)
        if end.status == EXIT_DISK_FULL:
            told = f"{_ending(end)}: its disk was too full even to say so."
            raise StageFailure(told, code="disk_full", stage=name, log=end.log_tail)
        return self._for_memory(name, end) and self._halve(name)

    def _for_memory(self, name: str, end: ChildEnd) -> bool:
        """Whether the kernel has killed it for want of memory. It may only look like that: somebody kills a process
        shortly after the kernel killed another one, which is why this alone fails no stage."""
        return end.out_of_memory and (end.status == -signal.SIGKILL or self._devices(name) > 1)

    def _again(self, name: str, crashes: Sequence[ChildEnd]) -> None:
        """Let a stage that was killed from outside be started again, unless that has led nowhere.

        Args:
            crashes: those since it last got further.
        """
        end = crashes[-1]
        if shutil.disk_usage(self.layout.root).free < LEAST_ROOM:
            raise StageFailure(f"{_ending(end)}: there is no room on the disk.", code="disk_full", stage=name)
        # A launcher ends with status 1 when one of its processes was killed.
        killed = end.status < 0 or self._devices(name) > 1
        if len(crashes) >= MAX_CRASHES and all(self._for_memory(name, crash) for crash in crashes):
            told = f"{_ending(end)}: the host ran out of memory."
            raise StageFailure(told, code="out_of_memory", stage=name, log=end.log_tail)
        if not killed or len(crashes) >= MAX_CRASHES:
            raise StageFailure(f"{_ending(end)}.", stage=name, log=end.log_tail)
        message = f"{_ending(end)}; starting it again from its last checkpoint"
        self.host.events([NewEvent(type="message", level="warn", stage=name, message=message)])
        # A machine short of memory kills again at once; give it a moment.
        time.sleep(len(crashes))

    def _halve(self, name: str) -> bool:
        """Once a stage: half the sequences in a forward pass, twice as many passes, the same step."""
        stage, chosen = self.plan.stage(name), self.layout.micro_batch(name)
        if chosen.exists() or not isinstance(stage, Training) or stage.per_device_batch_size % 2:
            return False
        half = stage.per_device_batch_size // 2
        write_atomic(chosen, str(half))
        message = (
            f"out of memory with {stage.per_device_batch_size} sequences in a forward pass; going on with {half}, "
            "which makes the same steps"
        )
        self.host.events([NewEvent(type="message", level="warn", stage=name, message=message)])
        return True

    def _roll_back(self, name: str, error: StageError) -> bool:
        """Once a stage: go on from the checkpoint before the number that is none. Nothing of that step was saved."""
        marker = self.layout.stage(name) / "rolled_back"
        if marker.exists():
            return False
        write_atomic(marker, error.message)
        message = f"{error.message} Going back to the last checkpoint, once."
        self.host.events([NewEvent(type="message", level="warn", stage=name, step=error.step, message=message)])
        return True

    def _judge(self, result: StageResult) -> None:
        if result.gate is None or result.gate.passed or self.plan.gates.on_failure == "continue":
            return
        # A control shows what happens without what the gate asks for.
        if self.plan.stage(result.stage).arm == WORKFLOW:
            raise StageFailure(result.gate.message, code=f"gate_{result.gate.gate}", stage=result.stage)

    def _emit(self, name: str, state: str, **data: Any) -> None:
        event = NewEvent(type="stage", stage=name, message=f"{name} {state}", data={"state": state, **data})
        self.host.events([event])

    def _report(self) -> Path | None:
        """Write the report in a process of its own: it loads a plotting library that a worker need not keep.

        A report that cannot be written costs no student: it is an error among the events, and can be made later with
        `python -m s2d.report`.
        """
        command = [sys.executable, "-m", "s2d.report", str(self.layout.root)]
        try:
            # In a session of its own: a worker that is told to stop with its whole group ends when this is written.
            run = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=REPORT_TIMEOUT_S, start_new_session=True
            )
            trouble = None if run.returncode == 0 else run.stderr.strip()[-2000:]
        except subprocess.TimeoutExpired:
            trouble = f"it took more than {REPORT_TIMEOUT_S} s"
        if trouble is None:
            return self.layout.report / "report.json"
        message = f"The report could not be written: {trouble}"
        self.host.events([NewEvent(type="message", level="error", message=message)])
        return None


def _attempts(folder: Path) -> int:
    """The highest number of an attempt at a stage. Its task is brought to the disk before it begins, its events are
    not: a host without power may lose that file, and whoever read from it must not take the next one for it."""
    return max(map(attempt_of, (*folder.glob("task-*.json"), *event_files(folder))), default=0)


def _read_number(path: Path) -> int | None:
    return int(path.read_text()) if path.exists() else None


def row_counts(plan: Plan) -> Mapping[Any, int]:
    """Rows of each role, as `s2d.data.split.split` takes them."""
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
