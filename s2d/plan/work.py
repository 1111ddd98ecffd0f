"""What a stage of a plan draws and trains on, as `timing` counts it, and so how long it takes: from its document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

from s2d.plan.document import Grpo, LabelAllocation, Model, Opd, Plan, Select, Stage, TeacherRollouts, Training, Warmup
from s2d.plan.gates import Gates
from s2d.plan.graph import WORKFLOW, base_of
from s2d.plan.machine import Hardware
from s2d.plan.timing import Generate, Lengths, StageWork, Train, cost


@dataclass(frozen=True)
class Ground:
    """What the stages of one plan have in common."""

    teacher: Model
    student: Model
    hardware: Hardware
    gates: Gates
    labels: LabelAllocation
    lengths: Lengths

    @classmethod
    def of(cls, plan: Plan) -> Ground:
        lengths = Lengths(plan.mean_prompt_tokens, plan.max_completion_tokens, plan.mean_completion_tokens)
        return cls(plan.teacher, plan.student, plan.hardware, plan.gates, plan.data.labels, lengths)

    def model(self, stages: Sequence[Stage], name: str) -> Model:
        return self.teacher if base_of(stages, name) == "base_teacher" else self.student


def timed(ground: Ground, stages: Sequence[Stage]) -> tuple[Stage, ...]:
    """The stages with their tokens and seconds."""
    return tuple(_timed(ground, stages, stage) for stage in stages)


def _timed(ground: Ground, stages: Sequence[Stage], stage: Stage) -> Stage:
    longest = work(ground, stages, stage, stage.max_steps) if isinstance(stage, Warmup) else None
    spent = cost(stage.kind, ground.hardware, lengths(ground, stage), work(ground, stages, stage), longest)
    estimate = stage.estimate.model_copy(update={"tokens": spent.tokens, "seconds": spent.seconds})
    return stage.model_copy(update={"estimate": estimate})


def lengths(ground: Ground, stage: Stage) -> Lengths:
    """Of the stage's completions, which may end early."""
    if isinstance(stage, Warmup | Opd):
        return replace(ground.lengths, max_completion=ceil(stage.prefix_share * ground.lengths.max_completion))
    return ground.lengths


def work(ground: Ground, stages: Sequence[Stage], stage: Stage, steps: int | None = None) -> StageWork:
    """Args:
    stages: those that the models of this one come from, at least.
    steps: how many it makes, where not as planned."""
    labels, k = ground.labels, ground.gates.c1.k
    if isinstance(stage, Training):
        return _training(ground, stages, stage, stage.steps if steps is None else steps)
    if isinstance(stage, TeacherRollouts):
        teacher = ground.model(stages, stage.teacher)
        # C1 is judged here, for the models before and after stage 1.
        judged = 2 * labels.validation * k if stage.arm == WORKFLOW else 0
        drawn = (judged, stage.prompts * stage.samples_per_prompt)
        return StageWork(tuple(Generate(teacher, many, stage.batch_size, 1) for many in drawn if many))
    if isinstance(stage, Select):
        candidates = ((one, labels.validation * stage.k) for one in stage.candidates)
    else:
        candidates = ((one, labels.test * stage.k) for one in stage.models)
    drawn_each = (Generate(ground.model(stages, one), many, stage.batch_size, 1) for one, many in candidates)
    return StageWork(tuple(drawn_each))


def _training(ground: Ground, stages: Sequence[Stage], stage: Training, steps: int) -> StageWork:
    model, devices = ground.model(stages, stage.starts_from), ground.hardware.devices
    sequences = stage.per_device_batch_size * stage.gradient_accumulation * devices
    scorers: tuple[Model, ...] = ()
    if isinstance(stage, Warmup | Opd):
        scorers = (ground.model(stages, stage.teacher),)
    elif isinstance(stage, Grpo) and stage.beta > 0:
        scorers = (model,)
    train = Train(
        model,
        steps,
        sequences,
        stage.per_device_batch_size,
        stage.gradient_checkpointing,
        scorers,
        lora=stage.lora is not None,
    )
    if isinstance(stage, Warmup):
        # It reads what the teacher has written; C2 draws anew before, at the end, and each time that it did not hold.
        times = 2 + max(0, steps - stage.steps) // stage.check_every
        judged = Generate(model, times * ground.gates.c2.prompts, stage.per_device_batch_size, 1)
        return StageWork((judged,), (train,))
    return StageWork((Generate(model, steps * sequences, sequences // devices, devices),), (train,))
