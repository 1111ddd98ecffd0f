"""What a job tells the world as it goes: the one shape of an event, from stage process to API."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

EventType = Literal["state", "stage", "progress", "metrics", "message", "checkpoint", "gate", "evaluation"]


class NewEvent(BaseModel):
    """Something that happened in a job; `data` holds the numbers."""

    model_config = ConfigDict(frozen=True)

    type: EventType
    level: Literal["info", "warn", "error"] = "info"
    stage: str | None = None
    step: int | None = None
    message: str = ""
    data: dict[str, Any] = {}
