"""Keeps the best of several candidates, judged on the validation labels and on nothing else."""

from __future__ import annotations

from s2d.plan.document import Select
from s2d.runner.task import StageResult
from s2d.stages.models import copy_model
from s2d.stages.runtime import StageRuntime
from s2d.stages.validation import validate


def run(runtime: StageRuntime) -> StageResult:
    """The first of equals is kept. The others stay where they are."""
    stage: Select = runtime.stage
    scores = {name: validate(runtime, name, k=stage.k) for name in stage.candidates}
    means = {name: sum(one.means) / len(one.means) for name, one in scores.items()}
    chosen = max(means, key=lambda name: means[name])
    copy_model(runtime.layout.model(chosen), runtime.layout.model(stage.keeps_as))
    told = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    runtime.emit("message", f"{chosen} is kept as {stage.keeps_as}: avg@{stage.k} on validation {told}")
    return StageResult(
        stage=stage.id,
        kind=stage.kind,
        tokens=sum(one.completion_tokens for one in scores.values()),
        prompt_tokens=sum(one.prompt_tokens for one in scores.values()),
        labels=len(next(iter(scores.values())).ids),
        data={"chosen": chosen, "avg_at_k": means},
    )
