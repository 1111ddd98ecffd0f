"""The schema of `report.json`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from s2d.plan.document import LabelAllocation
from s2d.plan.names import StageKind

SCHEMA_VERSION = "s2d.report/2"


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PassAtK(_Document):
    k: int
    mean: float
    low: float
    high: float


class ArmResult(_Document):
    """One model on the test labels. Accuracies are shares in [0, 1] with 95 % intervals."""

    model: str
    label: str
    arm: str
    """`workflow`, or the control."""
    avg_at_k: float
    low: float
    high: float
    k: int
    problems: int
    pass_at_k: list[PassAtK]
    truncated: float
    labels_used: int
    """Distinct labels that were drawn to train this model or its teacher; a short run draws fewer than it may."""
    updates: int
    """Optimizer steps of the student behind this model, its teacher's not counted."""
    flops: float
    """Of every stage that this model needed, its teacher's included (s2d.plan.flops)."""
    seconds: float
    """Training and rollout time of every stage that this model needed."""


class StageSummary(_Document):
    id: str
    arm: str
    kind: StageKind
    steps: int
    tokens: int
    flops: float
    seconds: float
    peak_memory_gib: float | None = None
    """The most that the stage's first process had on its device; None in a report of a time before this was told."""
    labels: int
    dropped_prompts: int


class Spending(_Document):
    """Labels that a stage has on its account; `ledger.jsonl` in the job's folder names each of them."""

    arm: str
    stage: str
    role: str
    labels: int


class Check(_Document):
    """C2 as it was measured once during a warmup."""

    step: int
    reverse_kl: float
    """Mean nats per completion token."""
    top_token_agreement: float
    passed: bool


Decision = Literal["went on", "stopped", "went on although it failed, as asked", "measured only"]
"""What a job did after a gate. A control's gate is measured and stops nothing."""


class Gate(_Document):
    stage: str
    arm: str
    gate: Literal["c1", "c2"]
    passed: bool
    message: str
    measured: dict[str, Any]
    decided: Decision | None = None
    """None in a report that was written before this was told."""
    checks: list[Check] = []
    """C2: every measurement during the warmup, in order. The first is at the plan's `steps`; the warmup went on until
    the last."""


class Comparison(_Document):
    """Paired over the same test problems: mean of (arm − baseline) with a 95 % bootstrap interval."""

    arm: str
    baseline: str
    gain: float
    low: float
    high: float


class Provenance(_Document):
    teacher: str
    student: str
    verifier: str
    plan_id: str
    plan_sha256: str
    data_sha256: dict[str, str]
    seed: int
    versions: dict[str, str]
    hardware: dict[str, Any]
    created_at: str


class Report(_Document):
    schema_version: Literal["s2d.report/2"] = "s2d.report/2"
    complete: bool
    """False when the job ended before its evaluation."""
    arms: list[ArmResult]
    comparisons: list[Comparison]
    stages: list[StageSummary]
    gates: list[Gate]
    labels: LabelAllocation
    ledger: list[Spending]
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """Stage -> metric -> [(step, value)]."""
    provenance: Provenance
