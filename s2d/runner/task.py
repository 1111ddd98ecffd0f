"""What a stage process is given and what it leaves behind: the whole interface between the runner and a stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from s2d.plan.document import StageKind

#: Exit status of a stage that was told to stop, saved a checkpoint and can be resumed (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProcessId(_Document):
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    started: float


class StageTask(_Document):
    """`python -m s2d.stages TASK.json` reads this."""

    job_dir: Path
    stage: str
    """The stage's id in the plan."""
    attempt: int
    models: dict[str, str]
    micro_batch: int | None = None
    """Sequences in one forward pass where the plan's number was too many for the memory; the step stays the same."""
    supervisor: ProcessId
    heartbeat: Path | None = None
    heartbeat_timeout_s: float | None = None

    @property
    def events_name(self) -> str:
        return f"events-{self.attempt:03d}.jsonl"


class GateResult(_Document):
    """What was measured for a gate, and what that means."""

    gate: Literal["c1", "c2"]
    passed: bool
    measured: dict[str, Any]
    message: str


class StageResult(_Document):
    """`result.json`: the stage is done."""

    stage: str
    kind: StageKind
    steps: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    """Of rollouts, beside `tokens`; training counts its prompts among `tokens`."""
    flops: float = 0.0
    seconds: float = 0.0
    labels: int = 0
    dropped_prompts: int = 0
    gate: GateResult | None = None
    data: dict[str, Any] = {}


class StageError(_Document):
    """`failure.json`: why the stage ended without a result."""

    code: str
    message: str
    step: int | None = None
