"""Predicted times against measured ones: `python -m benchmarks.planner.times`.

The machine is probed first, then stages of many kinds and sizes run. A stage is judged twice: by the range that the
probe alone gives, and by the range after the machine has run all of the other cells, as it would be for a user who has
had some jobs. The lengths of completions are taken as they were: what is judged is the machine, not the model's habits.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.output import publish
from benchmarks.planner.cells import FLAT, LARGE, MIDDLE, NARROW, WIDE, Cell
from benchmarks.planner.measure import Row, plan_of, run_cell
from s2d.cli.probe import measured
from s2d.plan.calibration import Ran, calibrate, ratio
from s2d.plan.hardware import detect
from s2d.plan.machine import Factor, Rates
from s2d.plan.names import StageKind
from s2d.plan.timing import PROBED

RESULTS = Path(__file__).parents[1] / "results"

GRID = (
    Cell("rl tiny", "student_rl", FLAT, FLAT, 2048, prompt=16, completion=16, sequences=16, micro=16, steps=12),
    Cell("rl deep", "teacher_rl", NARROW, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=6),
    Cell("rl middle", "teacher_rl", MIDDLE, FLAT, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=6),
    Cell("rl wide", "teacher_rl", WIDE, FLAT, 4096, prompt=32, completion=24, sequences=16, micro=16, steps=5),
    Cell("rl large", "teacher_rl", LARGE, FLAT, 4096, prompt=32, completion=24, sequences=8, micro=8, steps=4),
    Cell("rl adapters", "teacher_rl", MIDDLE, FLAT, 4096, 32, 32, 16, 8, lora=True, steps=6),
    Cell("rl checkpointed", "teacher_rl", MIDDLE, FLAT, 4096, 32, 32, 16, 8, checkpointing=True, steps=6),
    Cell("warmup tiny", "warmup", MIDDLE, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=12),
    Cell("warmup middle", "warmup", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=5),
    Cell("warmup wide", "warmup", WIDE, MIDDLE, 4096, prompt=32, completion=48, sequences=16, micro=16, steps=5),
    Cell("opd tiny", "opd", MIDDLE, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=10),
    Cell("opd middle", "opd", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=5),
    Cell("opd deep", "opd", MIDDLE, NARROW, 2048, prompt=32, completion=48, sequences=16, micro=16, steps=5),
    Cell("rollouts middle", "teacher_rollouts", MIDDLE, FLAT, 4096, prompt=32, completion=96, sequences=64),
    Cell("rollouts deep", "teacher_rollouts", NARROW, FLAT, 2048, prompt=32, completion=160, sequences=48),
    Cell("rollouts large", "teacher_rollouts", LARGE, FLAT, 4096, prompt=32, completion=64, sequences=32),
    Cell("evaluation", "evaluate", MIDDLE, FLAT, 4096, prompt=32, completion=48, sequences=64, top_p=0.8),
    Cell("evaluation large", "evaluate", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=32, top_p=0.8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "planner-times")
    parser.add_argument("--judge", type=Path, help="judge the rows of this file again, and run nothing")
    arguments = parser.parse_args()
    if arguments.judge:
        document = json.loads(arguments.judge.read_text())
        rates, rows = Rates.model_validate(document["rates"]), document["rows"]
    else:
        rates, rows = run()
    found = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **judged(rates, rows), "rows": rows}
    publish(found, to_markdown(found), arguments.out)


def run() -> tuple[Rates, list[Row]]:
    """Probe the machine with the one thread that the cells have, then run them."""
    rates = measured(detect().model_copy(update={"cpu_threads": 1}))
    rows = []
    for number, cell in enumerate(GRID, 1):
        rows.append(run_cell(cell))
        print(f"{number} of {len(GRID)}: {cell.name}, {rows[-1]['seconds_in_stage']} s", file=sys.stderr, flush=True)
    return rates, rows


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
    cell = next(one for one in GRID if one.name == row["cell"])
    with TemporaryDirectory() as folder:
        plan, _ = plan_of(cell, Path(folder), weights=False)
    return ratio(plan, Ran(cell.stage, row["seconds_in_stage"], row["tokens"], row["steps"]), rates)


def _holds(factor: Factor, found: float) -> bool:
    return abs(math.log(found / factor.middle)) <= math.log(factor.spread)


def to_markdown(found: dict[str, Any]) -> str:
    count = len(found["cells"])
    held = {name: round(count * found[f"coverage_{name}"]) for name in ("probe", "after_others")}
    lines = [
        "# The planner's times against measured ones",
        "",
        f"`python -m benchmarks.planner.times`, {found['made_at'][:10]}: stages of models with 2 to 110 million "
        "parameters on one thread. The 80 % range holds the truth",
        "",
        f"- for {held['probe']} of {count} stages with the probe alone (expected times or divided by "
        f"{PROBED.spread:g}),",
        f"- for {held['after_others']} of {count} once the machine has run the others.",
        "",
        "| stage | cell | measured, s | expected by the probe, s | ratio | range after the others, s |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for cell in found["cells"]:
        factor, expected = Factor.model_validate(cell["factor"]), cell["expected"]
        low, high = (expected * factor.middle * way for way in (1 / factor.spread, factor.spread))
        mark = "" if cell["held_after_others"] else " ✗"
        lines.append(
            f"| {cell['stage']} | {cell['cell']} | {cell['seconds']:.1f} | {expected:.1f} | {cell['ratio']:.2f} | "
            f"{low:.1f} to {high:.1f}{mark} |"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
