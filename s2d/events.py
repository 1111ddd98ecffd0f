"""What a job tells the world as it goes: the one shape of an event, from stage process to API."""

from __future__ import annotations

import time
from collections.abc import Sequence
from hashlib import sha256
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


def name_of(events: Sequence[NewEvent]) -> str | None:
    """A name for what is told once in a job: the beginning and the end of a process, and a stage's success. Whoever
    tells it may be killed when the database has it and before that is noted, and then it is told again. None: of
    anything else."""
    if len(events) != 1:
        return None
    (event,) = events
    state = event.data.get("state")
    if event.type != "process" and (event.type, state) != ("stage", "succeeded"):
        return None
    return sha256(f"{event.type} {event.stage} {event.data.get('attempt')} {state}".encode()).hexdigest()[:32]
