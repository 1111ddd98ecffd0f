"""What a person wants to know of a running job, kept up to date from its events. No output here."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

RowState = Literal["waiting", "running", "succeeded", "failed"]

#: The one number that says whether a stage goes well.
MAIN_METRIC = {
    "teacher_rl": "reward_mean",
    "student_rl": "reward_mean",
    "direct_grpo": "reward_mean",
    "warmup": "forward_kl",
    "opd": "reverse_kl",
}
UNITS = {"forward_kl": " nats", "reverse_kl": " nats"}


@dataclass
class Row:
    """One stage. Times are seconds since the epoch."""

    name: str
    kind: str = ""
    state: RowState = "waiting"
    step: int | None = None
    steps: int | None = None
    metric: str = ""
    note: str = ""
    started: float | None = None
    ended: float | None = None

    @property
    def elapsed(self) -> float | None:
        return None if self.started is None else max(0.0, (self.ended or time.time()) - self.started)

    @property
    def count(self) -> str:
        if self.step is None:
            return ""
        return f"{self.step}/{self.steps}" if self.steps else str(self.step)

    @property
    def told(self) -> str:
        """The metric, or what it does before there is one."""
        return self.metric or (self.note if self.state == "running" else "")

    def line(self) -> str:
        """The row as plain text."""
        seconds = f"{self.elapsed:.0f} s" if self.elapsed is not None else ""
        return "  ".join(part for part in (self.name, self.state, self.count, self.told, seconds) if part)


@dataclass
class Board:
    """The rows of a job in order, and its state."""

    rows: dict[str, Row] = field(default_factory=dict)
    state: str = "queued"

    @classmethod
    def of(cls, kinds: Mapping[str, str]) -> Board:
        """A board that shows the stages that are yet to come: id -> kind."""
        return cls({name: Row(name, kind) for name, kind in kinds.items()})

    @property
    def running(self) -> Row | None:
        return next((row for row in self.rows.values() if row.state == "running"), None)

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Take an event in. Returns a line that is worth keeping: a warning, a gate, a change of the job's state."""
        kind, message = event["type"], event["message"]
        if kind == "state":
            return self._on_state(event["data"]["state"])
        if event["stage"] is not None:
            self._on_stage(self._row(event["stage"]), event)
        if kind in ("gate", "evaluation") or event["level"] != "info":
            prefix = {"warn": "warning: ", "error": "error: "}.get(event["level"], "")
            return f"{prefix}{event['stage'] or 'job'}: {message}"
        return None

    def _on_state(self, state: str) -> str:
        self.state = state
        running = self.running
        if running is not None and state != "running":
            # Its process is gone: handed back, cancelled or failed.
            running.state = "failed" if state == "failed" else "waiting"
            running.ended = time.time()
        return f"job {state}"

    def _on_stage(self, row: Row, event: Mapping[str, Any]) -> None:
        data, now = event["data"], event.get("created_at") or time.time()
        if event["type"] == "stage":
            row.state = data["state"]
            row.note = ""
            if row.state == "running":
                row.started, row.ended = now, None
            else:
                row.ended = now
        if event["type"] in ("progress", "metrics"):
            row.step, row.steps = event["step"], data["steps"]
        if event["type"] in ("progress", "message"):
            row.note = event["message"]
        if event["type"] == "metrics":
            row.metric = _main_metric(row.kind, data["metrics"]) or row.metric

    def _row(self, name: str) -> Row:
        return self.rows.setdefault(name, Row(name))


def _main_metric(kind: str, metrics: Mapping[str, Any]) -> str:
    name = MAIN_METRIC.get(kind, "")
    value = metrics.get(name)
    return "" if value is None else f"{name.replace('_', ' ')} {value:.3f}{UNITS.get(name, '')}"
