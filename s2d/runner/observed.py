"""How long a finished job's stages took, for the plans to come."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from s2d.plan.calibration import Ran
from s2d.plan.document import Plan, Training
from s2d.plan.hardware import detect
from s2d.plan.machines import Machines, kind_of
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageResult

_log = logging.getLogger(__name__)


def remember(state_dir: Path, plan: Plan, layout: JobLayout) -> None:
    """Keep the times of a job that has run here to its end.

    They are of no use where the plan is for other hardware, or for vLLM, whose speed the estimates do not tell. No job
    fails for them, whatever goes wrong.
    """
    try:
        if plan.rollout_engine == "transformers" and kind_of(plan.hardware) == kind_of(detect()):
            Machines.of_state(state_dir).keep_stages(plan, layout.root, _ran(plan, layout))
    except Exception:
        _log.exception("the times of the job in %s could not be kept", layout.root)


def _ran(plan: Plan, layout: JobLayout) -> Iterator[Ran]:
    for stage in plan.stages:
        path = layout.result(stage.id)
        # One that was interrupted also took the time of its further starts.
        if not path.exists() or len(list(path.parent.glob("events-*.jsonl"))) != 1:
            continue
        result = StageResult.model_validate_json(path.read_text())
        if result.seconds and (result.steps or not isinstance(stage, Training)):
            yield Ran(stage.id, result.seconds, result.tokens, result.steps)
