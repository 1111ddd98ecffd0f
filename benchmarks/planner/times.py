"""Predicted times against measured ones.

A stage is judged twice: by the range that the probe alone gives, and by the range after the machine has run all of the
other cells, as it would be for a user who has had some jobs. The lengths of completions are taken as they were: what is
judged is the machine, not the model's habits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.planner.cells import TIMED
from benchmarks.planner.measure import Row, plan_of
from s2d.plan.calibration import Ran, calibrate, ratio
from s2d.plan.machine import Factor, Rates
from s2d.plan.names import StageKind
from s2d.plan.timing import PROBED


def judged(rates: Rates, rows: Sequence[Row]) -> dict[str, Any]:
    """Ratios of measured to expected seconds, and whether the 80 % ranges hold them."""
    seen: list[tuple[StageKind, float]] = [(row["stage"], _ratio(rates, row)) for row in rows]
    cells = []
    for index, (row, (kind, found)) in enumerate(zip(rows, seen, strict=True)):
        others = calibrate(rates, seen[:index] + seen[index + 1 :], PROBED).factor(kind)
        cells.append(
            {
                "cell": row["cell"],
                "stage": kind,
                "seconds": row["seconds_in_stage"],
                "expected": round(row["seconds_in_stage"] / found, 2),
                "ratio": round(found, 3),
                "held_by_probe": _holds(PROBED, found),
                "factor": others.model_dump(include={"middle", "spread"}),
                "held_after_others": _holds(others, found),
            }
        )
    return {
        "rates": rates.model_dump(),
        "cells": cells,
        "coverage_probe": fmean(cell["held_by_probe"] for cell in cells),
        "coverage_after_others": fmean(cell["held_after_others"] for cell in cells),
    }


def _ratio(rates: Rates, row: Row) -> float:
    cell = next(one for one in TIMED if one.name == row["cell"])
    with TemporaryDirectory() as folder:
        plan, _ = plan_of(cell, Path(folder), weights=False)
    return ratio(plan, Ran(cell.stage, row["seconds_in_stage"], row["tokens"], row["steps"]), rates)


def _holds(factor: Factor, found: float) -> bool:
    return abs(math.log(found / factor.middle)) <= math.log(factor.spread)


def to_markdown(found: dict[str, Any]) -> list[str]:
    cells = found["cells"]
    count = len(cells)
    held = {name: round(count * found[f"coverage_{name}"]) for name in ("probe", "after_others")}
    ratios = [cell["ratio"] for cell in cells]
    lines = [
        f"The machine was probed first (`s2d probe`). Stages took {min(ratios):.2f} to {max(ratios):.2f} times what "
        f"the probe lets expect, {median(ratios):.2f} in the middle. The 80 % range holds the truth",
        "",
        f"- for {held['probe']} of {count} stages with the probe alone (expected times or divided by "
        f"{PROBED.spread:g}),",
        f"- for {held['after_others']} of {count} once the machine has run the others.",
        "",
        "| stage | cell | measured, s | expected by the probe, s | ratio | range after the others, s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for cell in cells:
        factor, expected = Factor.model_validate(cell["factor"]), cell["expected"]
        low, high = (expected * factor.middle * way for way in (1 / factor.spread, factor.spread))
        mark = "" if cell["held_after_others"] else " ✗"
        lines.append(
            f"| {cell['stage']} | {cell['cell']} | {cell['seconds']:.1f} | {expected:.1f} | {cell['ratio']:.2f} | "
            f"{low:.1f} to {high:.1f}{mark} |"
        )
    return lines
