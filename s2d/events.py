"""What a job tells the world as it goes: the one shape of an event, from stage process to API."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EventType = Literal["state", "stage", "process", "progress", "metrics", "message", "checkpoint", "gate", "evaluation"]
"""`process`: a stage's process began (`data.state` "started") or is gone ("ended"); meanwhile no other one lives."""


class Origin(BaseModel):
    """Where a stage's event stands: a file below the job's folder, and the byte after its line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    offset: int


class NewEvent(BaseModel):
    """Something that happened in a job; `data` holds the numbers, `at` the seconds since the epoch."""

    model_config = ConfigDict(frozen=True)

    type: EventType
    level: Literal["info", "warn", "error"] = "info"
    stage: str | None = None
    step: int | None = None
    message: str = ""
    data: dict[str, Any] = {}
    at: float = Field(default_factory=time.time)
    origin: Origin | None = Field(default=None, exclude=True)
    """Of an event that was read from a stage's file: stored with it, so that none is stored twice or left out."""
