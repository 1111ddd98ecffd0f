"""What surrounds a stage: its events, the wish to stop, and the watch over its supervisor."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

from s2d.events import EventType, NewEvent
from s2d.plan.document import Plan, load_plan
from s2d.runner.exclusive import join
from s2d.runner.layout import JobLayout
from s2d.runner.processes import alive
from s2d.runner.task import GateResult, StageTask, same_process
from s2d.stages.matching import fitted, matched

WATCH_S = 0.5


class Interrupted(Exception):
    """The stage was told to stop and has saved what it needs to go on later."""


class StageRuntime:
    """One stage's surroundings. `rank` 0 alone writes events and files."""

    def __init__(self, task: StageTask, rank: int = 0) -> None:
        self.task = task
        self.rank = rank
        self.layout = JobLayout(task.job_dir)
        self.plan: Plan = load_plan(self.layout.plan.read_text())
        stage = matched(self.plan, self.layout, self.plan.stage(task.stage))
        self.stage: Any = fitted(stage, task.micro_batch)
        self.folder = self.layout.stage(task.stage)
        self.stop_requested = False
        self._events = self.folder / task.events_name

    def emit(
        self,
        kind: EventType,
        message: str = "",
        *,
        level: str = "info",
        step: int | None = None,
        **data: Any,
    ) -> None:
        """Append one event; the runner reads the file as it grows."""
        if self.rank != 0:
            return
        event = NewEvent(type=kind, level=level, stage=self.task.stage, step=step, message=message, data=data)
        with self._events.open("a", encoding="utf-8") as file:
            file.write(event.model_dump_json() + "\n")

    def progress(self, done: int, total: int, what: str) -> None:
        """Progress that is no optimizer step: `done` of `total`.

        Raises:
            Interrupted: told to stop; what was begun here is done again, what was kept is kept.
        """
        self.emit("progress", what, step=done, steps=total)
        self.check_stop()

    def gate(self, result: GateResult, step: int | None = None) -> None:
        level = "info" if result.passed else "warn"
        data = result.model_dump(mode="json", exclude={"message"})
        self.emit("gate", result.message, level=level, step=step, **data)

    def check_stop(self) -> None:
        """Raises Interrupted between two pieces of work that are kept."""
        if self.stop_requested:
            raise Interrupted

    def watch(self) -> None:
        """From now on SIGTERM asks for a stop, and the stage ends itself when its supervisor or its lease is gone.

        Raises:
            Superseded: a newer claim has the job.
        """
        self._lock = join(self.layout, self.task.epoch)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._watch_supervisor, name="supervisor-watch", daemon=True).start()

    def _on_sigterm(self, _number: int, _frame: FrameType | None) -> None:
        self.stop_requested = True

    def _watch_supervisor(self) -> None:
        try:
            supervisor, parent = same_process(self.task.supervisor), os.getppid()
            heartbeat = _Heartbeat(self.task.heartbeat, self.task.heartbeat_timeout_s)
            # The parent is the supervisor, or a launcher that may be killed on its own.
            while alive(supervisor) and os.getppid() == parent and heartbeat.fresh():
                time.sleep(WATCH_S)
        finally:
            # Also when the watch itself fails: a trainer that nobody watches is worse than one that starts again.
            # Not SIGTERM: whoever took the job over must never meet a second trainer, so no last checkpoint.
            os.killpg(os.getpgid(0), signal.SIGKILL)


class _Heartbeat:
    """Fresh while the file's time of change keeps moving, on this process's own clock: no two clocks are compared."""

    def __init__(self, path: Path | None, timeout_s: float | None) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._seen = 0
        self._since = time.monotonic()

    def fresh(self) -> bool:
        if self._path is None or self._timeout_s is None:
            return True
        changed = self._path.stat().st_mtime_ns
        if changed != self._seen:
            self._seen, self._since = changed, time.monotonic()
        return time.monotonic() - self._since < self._timeout_s
