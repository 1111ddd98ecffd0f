"""What `JobRow.progress` holds: written by the worker with every batch of events, read by whoever shows a job."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from s2d.store.states import JobState

StageState = Literal["pending", "running", "succeeded", "failed", "cancelled", "skipped"]


class EtaRange(BaseModel):
    """Seconds until the job ends: the 80 % range that we expect."""

    model_config = ConfigDict(frozen=True)

    low: float = Field(ge=0)
    high: float = Field(ge=0)


class StageProgress(BaseModel):
    """One stage of the job. Times are seconds since the epoch; `seconds` counts every attempt at the stage."""

    model_config = ConfigDict(frozen=True)

    id: str
    kind: str = Field(description="What it does; the stages of a control do the same as the workflow's.")
    state: StageState = "pending"
    started_at: float | None = None
    finished_at: float | None = None
    steps: int = Field(default=0, ge=0, description="Optimizer steps done.")
    seconds: float = Field(default=0.0, ge=0)
    tokens: int = Field(default=0, ge=0, description="Tokens generated plus trained on.")

    @model_validator(mode="before")
    @classmethod
    def _named(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """Jobs of the first version had one stage of a kind, and stored no id."""
        return {"id": stored.get("kind"), **stored}


class Progress(BaseModel):
    """How far a job is. `step` of `steps` counts within the current stage."""

    model_config = ConfigDict(frozen=True)

    stage: str | None = Field(default=None, description="The stage that runs now.")
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    metrics: dict[str, float | None] = Field(default={}, description="The latest metrics of the current stage.")
    eta_s: EtaRange | None = None
    stages: tuple[StageProgress, ...] = ()

    def held(self) -> Self:
        """A paused job's stage waits for its turn again."""
        waiting = {"state": "pending"}
        stages = tuple(stage.model_copy(update=waiting) if stage.state == "running" else stage for stage in self.stages)
        return self.model_copy(update={"stages": stages, "eta_s": None})

    def ended(self, state: JobState, at: float | None) -> Self:
        """What the last write of a worker means once the job has ended: no stage runs or waits any longer."""
        changes: dict[str, dict[str, Any]] = {
            "running": {"state": state, "finished_at": at},
            "pending": {"state": "skipped"},
        }
        stages = tuple(stage.model_copy(update=changes.get(stage.state)) for stage in self.stages)
        return self.model_copy(update={"stages": stages, "eta_s": None})
