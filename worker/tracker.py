"""Folds a job's events into the progress that `GET /v1/jobs/{id}` shows."""

from __future__ import annotations

import time
from typing import Any

from s2d.events import NewEvent
from s2d.plan.document import Plan, Range
from s2d.services.progress import EtaRange, Progress, StageProgress


class Tracker:
    """Goes on from the progress that an earlier claim of the job left."""

    def __init__(self, plan: Plan, before: Progress) -> None:
        self._expected: dict[str, Range] = {stage.id: stage.estimate.seconds for stage in plan.stages}
        fresh = tuple(StageProgress(id=stage.id, kind=stage.kind) for stage in plan.stages)
        self._now = before if before.stages else Progress(stages=fresh)
        self._began = time.monotonic()
        self._began_at_step = 0

    def take(self, events: list[NewEvent]) -> dict[str, Any]:
        """The progress document after these events."""
        for event in events:
            if event.type == "stage":
                self._stage(event)
            elif event.type in ("metrics", "progress"):
                self._step(event)
        self._now = self._now.model_copy(update={"eta_s": self._eta()})
        return self._now.model_dump(mode="json")

    def _stage(self, event: NewEvent) -> None:
        state, now = event.data["state"], time.time()
        if state == "running":
            before = self._of(event.stage)
            self._change(event.stage, state=state, started_at=before.started_at or now)
            self._now = self._now.model_copy(update={"stage": event.stage, "step": 0, "steps": 0, "metrics": {}})
            self._began, self._began_at_step = time.monotonic(), -1
        else:
            self._change(event.stage, state=state, finished_at=now, **_spent(event))

    def _step(self, event: NewEvent) -> None:
        step = event.step or 0
        if self._began_at_step < 0:
            # The pace is measured from the first report on: before it lies the loading, and steps done earlier.
            self._began, self._began_at_step = time.monotonic(), step
        changes: dict[str, Any] = {"step": step, "steps": event.data["steps"]}
        if event.type == "metrics":
            changes["metrics"] = event.data["metrics"]
            self._change(event.stage, steps=step, tokens=event.data["tokens"])
        self._now = self._now.model_copy(update=changes)

    def _of(self, name: str | None) -> StageProgress:
        return next(stage for stage in self._now.stages if stage.id == name)

    def _change(self, name: str | None, **changes: Any) -> None:
        stages = tuple(stage.model_copy(update=changes) if stage.id == name else stage for stage in self._now.stages)
        self._now = self._now.model_copy(update={"stages": stages})

    def _eta(self) -> EtaRange | None:
        """The rest of this stage at its own pace, plus the plan's ranges for the stages to come, scaled by how the
        finished ones compare with theirs."""
        waiting = [stage.id for stage in self._now.stages if stage.state == "pending"]
        low = sum(self._expected[name].low for name in waiting)
        high = sum(self._expected[name].high for name in waiting)
        scale = self._scale()
        current = self._rest_of_stage()
        if current is None:
            return None
        return EtaRange(low=current + low * scale[0], high=current + high * scale[1])

    def _rest_of_stage(self) -> float | None:
        running = [stage for stage in self._now.stages if stage.state == "running"]
        if not running:
            return 0.0
        done = self._now.step - self._began_at_step
        if self._began_at_step < 0 or done <= 0:
            return None
        pace = (time.monotonic() - self._began) / done
        return max(0, self._now.steps - self._now.step) * pace

    def _scale(self) -> tuple[float, float]:
        """Both ends are drawn towards what was seen: a range that was wrong so far is not believed further on."""
        finished = [stage for stage in self._now.stages if stage.state == "succeeded" and stage.seconds]
        seen = sum(stage.seconds for stage in finished)
        low = sum(self._expected[stage.id].low for stage in finished)
        high = sum(self._expected[stage.id].high for stage in finished)
        if not finished:
            return 1.0, 1.0
        return max(1.0, seen / high) if high else 1.0, min(1.0, seen / low) if low else 1.0


def _spent(event: NewEvent) -> dict[str, Any]:
    return {name: event.data[name] for name in ("steps", "seconds", "tokens")}
