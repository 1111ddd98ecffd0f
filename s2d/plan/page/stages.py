"""One stage in words: what it makes, what it reads, and its steps."""

from __future__ import annotations

from collections.abc import Iterator

from s2d.plan.document import Alternative, Evaluate, Grpo, Opd, Plan, Select, Stage, TeacherRollouts, Training, Warmup
from s2d.plan.graph import made_by
from s2d.plan.page.units import number

#: Less is not told apart.
LEAST_GIB = 0.05
COLUMNS = ("stage", "weights", "reads", "steps x sequences", "learning rate")


def row(plan: Plan, stage: Stage) -> tuple[str, ...]:
    """The stage under `COLUMNS`; one that does not train has no steps."""
    if not isinstance(stage, Training):
        return stage.id, "", _reads(plan, stage), "", ""
    sequences = stage.per_device_batch_size * stage.gradient_accumulation * plan.hardware.devices
    weights, steps = "LoRA" if stage.lora else "all", f"{_steps(stage)} x {sequences:,}"
    return stage.id, weights, _reads(plan, stage), steps, f"{stage.optim.learning_rate:g}"


def makes(stage: Stage) -> str:
    """The stage, and the model that it makes."""
    made = made_by(stage)
    return stage.id if made in (None, stage.id) else f"{stage.id} → {made}"


def memory_notes(stage: Stage) -> Iterator[str]:
    """What the peak is made of, the largest first, and by how much other ways to train the stage do not fit."""
    items = sorted(stage.estimate.memory, key=lambda item: -item.gib)
    yield ", ".join(f"{item.name.replace('_', ' ')} {number(item.gib)}" for item in items if item.gib >= LEAST_GIB)
    if isinstance(stage, Training):
        over = [f"{_way(one)} by {number(one.over_gib)}" for one in stage.alternatives if one.over_gib]
        if over:
            yield f"does not fit: {', '.join(over)}"


def _way(one: Alternative) -> str:
    what = "LoRA" if one.lora else "all weights, shared" if one.sharded else "all weights"
    return what + (" with checkpointing" if one.gradient_checkpointing else "")


def _steps(stage: Training) -> str:
    most: int = getattr(stage, "max_steps", stage.steps)
    return f"{stage.steps:,}" if most == stage.steps else f"{stage.steps:,} to {most:,}"


def _reads(plan: Plan, stage: Stage) -> str:
    labels = plan.data.labels
    if isinstance(stage, Grpo):
        return f"{sum(getattr(labels, role) for role in stage.label_roles):,} labels"
    if isinstance(stage, Evaluate):
        return f"{labels.test:,} test labels"
    if isinstance(stage, Select):
        return f"{labels.validation:,} validation labels"
    if isinstance(stage, Warmup):
        return _reads(plan, plan.stage(stage.rollouts))
    return f"{_prompts(plan, stage):,} prompts"


def _prompts(plan: Plan, stage: TeacherRollouts | Opd) -> int:
    if isinstance(stage, TeacherRollouts):
        return stage.prompts
    return plan.data.bridge_prompts if stage.pool == "bridge" else plan.data.labels.teacher_rl
