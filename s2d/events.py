"""What a job tells the world as it goes: the one shape of an event, from stage process to API."""

from __future__ import annotations

import time
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

EventType = Literal["state", "stage", "progress", "metrics", "message", "checkpoint", "gate", "evaluation"]


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
