"""Settings of the paper's table at small scale.

Chosen on seeds 0 and 1, which the table never uses; its own seeds start at `FIRST_SEED`. Every setting that was tried
is in `paper_tried.json`.
"""

from __future__ import annotations

from typing import Any, Final, get_args

from s2d.demo import settings as demo
from s2d.plan.names import Control

FIRST_SEED: Final = 20
SEEDS: Final = 6

CONTROLS: Final[tuple[str, ...]] = get_args(Control)
#: Direct GRPO keeps the one that is best on validation.
DIRECT_RATES: Final = (1e-4, 3e-4, 1e-3, 3e-3)


def options(controls: tuple[str, ...] = CONTROLS, *, compute_matched: bool = True) -> dict[str, Any]:
    """The plan request's fields beside models, file and seed."""
    given: dict[str, Any] = {**demo.OPTIONS, "controls": controls, "compute_matched": compute_matched}
    stages: dict[str, Any] = dict(demo.OPTIONS["stages"])
    direct = {
        name: value for name, value in stages.pop("direct_grpo").items() if name not in ("steps", "learning_rate")
    }
    if "direct_grpo" in controls:
        # As many steps as the workflow's RL stages have in all: the planner's own rule.
        stages["direct_grpo"] = {**direct, "learning_rates": DIRECT_RATES}
    # One thread: seeds run side by side, and the figures then do not depend on the number of cores.
    return {**given, "stages": stages, "hardware": {"device": "cpu", "cpu_threads": 1}, "on_gate_failure": "continue"}
