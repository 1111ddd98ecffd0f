"""What a stage process is given and what it leaves behind: the whole interface between the runner and a stage."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import psutil
from pydantic import BaseModel, ConfigDict

from s2d.plan.names import StageKind

#: Exit status of a stage that was told to stop, saved a checkpoint and can be resumed (EX_TEMPFAIL).
EXIT_INTERRUPTED = 75
#: Of a stage that failed while its disk was so full that not even `failure.json` could be written (EX_IOERR).
EXIT_DISK_FULL = 74


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ProcessId(_Document):
    """A process that cannot be confused with a later one of the same number."""

    pid: int
    started: float


#: A process with the same number that started this much later is another one.
CLOCK_STEP_S = 60.0


def this_process() -> ProcessId:
    return process_id(os.getpid())


def process_id(pid: int) -> ProcessId:
    """Of a process that is there, if only as a zombie."""
    return ProcessId(pid=pid, started=psutil.Process(pid).create_time())


def same_process(process: ProcessId) -> psutil.Process | None:
    """The very process, not a later one with its number. Compared once: psutil's times move with the host's clock."""
    try:
        found = psutil.Process(process.pid)
        return found if abs(found.create_time() - process.started) < CLOCK_STEP_S else None
    except psutil.NoSuchProcess:
        return None


class StageTask(_Document):
    """`python -m s2d.stages TASK.json` reads this."""

    job_dir: Path
    stage: str
    """The stage's id in the plan."""
    attempt: int
    epoch: int = 0
    """Of the claim that starts it; a process of an older epoch does not begin."""
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
    peak_memory_gib: float | None = None
    """Of the first process on its device, in the last attempt; see `s2d.stages.peak`."""
    labels: int = 0
    dropped_prompts: int = 0
    gate: GateResult | None = None
    data: dict[str, Any] = {}


class StageError(_Document):
    """`failure.json`: why the stage ended without a result."""

    code: str
    message: str
    step: int | None = None
