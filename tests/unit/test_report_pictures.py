"""Which pictures a report gets: no empty ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from s2d.report.document import Report, StageSummary
from s2d.report.pictures import draw

SUMS: dict[str, Any] = {
    "steps": 2, "tokens": 0, "flops": 0, "seconds": 0, "labels": 0, "dropped_prompts": 0
}  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "pictures"), [("reward_mean", ["curves.png"]), ("loss", [])], ids=["reward", "only a drill's loss"]
)
def test_a_picture_of_curves_is_drawn_where_there_are_some(tmp_path: Path, metric: str, pictures: list[str]) -> None:
    stages = [
        StageSummary(id="teacher_rl", arm="workflow", kind="teacher_rl", **SUMS),
        StageSummary(id="evaluate", arm="workflow", kind="evaluate", **SUMS),
    ]
    curves = {"teacher_rl": {metric: [(1, 0.25), (2, 0.5)]}, "evaluate": {"reward_mean": [(1, 1.0)]}}
    report = Report.model_construct(arms=[], stages=stages, curves=curves)
    assert draw(report, tmp_path) == pictures
    assert sorted(path.name for path in tmp_path.iterdir()) == pictures
