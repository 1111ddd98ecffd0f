"""The words that plans and requests are written in."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import StringConstraints

Control = Literal[
    "direct_grpo",
    "raw_teacher_bridge",
    "opd_only",
    "warmup_only",
    "cold_student_rl",
    "replay",
    "replay_labels",
    "labeled_bridge",
]
"""The control arms, see `s2d.plan.controls`."""

StageKind = Literal[
    "teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "direct_grpo", "select", "evaluate"
]
"""What a stage does. Several stages of a plan may do the same for different arms; their ids differ."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
"""The name of a stage, a model or an arm: also the name of its folder."""
