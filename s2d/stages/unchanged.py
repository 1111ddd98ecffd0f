"""A control that is matched in compute and had all of it already: its model is the one that it would go on from."""

from __future__ import annotations

from pathlib import Path

from s2d.runner.task import StageResult
from s2d.stages.models import copy_model
from s2d.stages.runtime import StageRuntime


def run(runtime: StageRuntime) -> StageResult:
    stage = runtime.stage
    if runtime.rank == 0:
        copy_model(Path(runtime.task.models[stage.starts_from]), runtime.layout.model(stage.trains))
    runtime.emit("message", f"{stage.starts_from} had as much compute as {stage.compute_of} already: no further step")
    return StageResult(stage=stage.id, kind=stage.kind)
