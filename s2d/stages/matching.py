"""A stage as it is really run: a control's number of steps follows from what other stages have done, and a stage that
ran out of memory takes smaller micro-batches."""

from __future__ import annotations

from typing import Any

from s2d.plan.document import Plan, Stage, Training, Warmup
from s2d.plan.graph import trunk
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageResult


def matched(plan: Plan, layout: JobLayout, stage: Stage) -> Any:
    """The stage with its real number of steps, which is 0 for a control that had its compute already."""
    if not isinstance(stage, Training) or not (stage.matches or stage.compute_of):
        return stage
    steps = sum(_result(layout, name).steps for name in stage.matches) or _affordable(plan, layout, stage)
    more: dict[str, Any] = {"max_steps": steps} if isinstance(stage, Warmup) else {}
    if stage.compute_of:
        # It goes on from the candidate that was chosen, as that one was trained.
        more["optim"] = plan.stage(_trunk(plan, layout, stage.starts_from)[-1]).optim
    return stage.model_copy(update={"steps": steps, **more})


def fitted(stage: Any, micro_batch: int | None) -> Any:
    """The stage with this many sequences in a forward pass, and as many passes as make the same step."""
    if micro_batch is None:
        return stage
    passes = stage.per_device_batch_size * stage.gradient_accumulation // micro_batch
    return stage.model_copy(update={"per_device_batch_size": micro_batch, "gradient_accumulation": passes})


def _affordable(plan: Plan, layout: JobLayout, stage: Training) -> int:
    """Steps until the FLOPs behind the model equal those of `compute_of`, at the pace of the stage it goes on from."""
    assert stage.compute_of is not None
    spent = _behind(layout, _trunk(plan, layout, stage.starts_from))
    left = _behind(layout, plan.lineage(stage.compute_of)) - spent
    before = _result(layout, _trunk(plan, layout, stage.starts_from)[-1])
    return max(0, round(left / (before.flops / before.steps)))


def _trunk(plan: Plan, layout: JobLayout, model: str) -> tuple[str, ...]:
    """The lineage of a model; of one that was selected, that of the candidate alone."""
    made = [one.id for one in plan.stages if one.kind == "select" and layout.result(one.id).exists()]
    return trunk(plan.stages, model, {name: _result(layout, name).data["chosen"] for name in made})


def _behind(layout: JobLayout, stages: tuple[str, ...]) -> float:
    return sum(_result(layout, name).flops for name in stages)


def _result(layout: JobLayout, name: str) -> StageResult:
    return StageResult.model_validate_json(layout.result(name).read_text())
