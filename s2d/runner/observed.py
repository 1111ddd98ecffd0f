"""How long a finished job's stages took, for the plans to come."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from s2d.plan.calibration import Ran
from s2d.plan.document import Plan, Training
from s2d.plan.machine import Hardware
from s2d.plan.machines import Machines, machine_name
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageResult

_log = logging.getLogger(__name__)


def remember(machines: Machines, plan: Plan, layout: JobLayout, here: Hardware) -> None:
    """Keep the times of a job that ran on this machine, `here`, to its end.

    They are of no use where the plan is for other hardware, or for vLLM, whose speed the estimates do not tell. No job
    fails for them.
    """
    if machine_name(plan.hardware) != machine_name(here) or plan.rollout_engine != "transformers":
        return
    try:
        machines.keep_stages(plan, _ran(plan, layout))
    except (OSError, ValueError):
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
