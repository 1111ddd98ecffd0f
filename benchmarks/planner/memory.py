"""Predicted peaks of memory against measured ones: `python -m benchmarks.planner.memory` (make bench-planner).

Each cell of the grid is a stage's process of its own; its peak is what the stage itself reports (`s2d.stages.peak`).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.output import publish
from s2d.plan.document import Lora, Model, Sampling
from s2d.plan.machine import Hardware
from s2d.plan.memory import GIB, Memory, Work, bounds, training
from s2d.plan.sizing import Drawing

RESULTS = Path(__file__).parents[1] / "results"
#: As close as the planner has to be, a share of what was measured.
CLOSE = 0.15

Row = dict[str, Any]


def expected(row: Row) -> Memory:
    """What the planner expects today of the stage that a row tells of."""
    plan, machine = row["plan"], Hardware.model_validate(row["hardware"])
    teacher, student = (_model(row[role]) for role in ("teacher", "student"))
    prompt, completion = row["max_prompt_tokens"], row["max_completion_tokens"]
    if row["stage"] in ("teacher_rollouts", "evaluate"):
        model = teacher if row["stage"] == "teacher_rollouts" else max(teacher, student, key=lambda one: one.parameters)
        sampling = Sampling.model_validate(plan["sampling"])
        return Drawing(model, prompt, completion, sampling).memory(machine, plan["batch_size"])
    batch = plan["per_device_batch_size"]
    work = Work(
        model=teacher if row["stage"] == "teacher_rl" else student,
        frozen=(teacher,) if row["stage"] in ("warmup", "opd") else (),
        sequences=batch * plan["gradient_accumulation"],
        tokens=prompt + completion,
        prompt=prompt,
        generates=row["stage"] != "warmup",
        measures_kl=row["stage"] == "warmup",
    )
    lora = Lora.model_validate(plan["lora"]) if plan["lora"] else None
    return training(work, machine, lora, batch, plan["gradient_checkpointing"])


def _model(sizes: Row) -> Model:
    return Model(**sizes, name="random", config_hash="", source="local")


def error(row: Row) -> float:
    """Of the expected peak, as a share of the measured one; positive where too much was expected."""
    measured: float = row["measured_peak_gib"]
    return expected(row).total / GIB / measured - 1


def judged(row: Row) -> Row:
    """A row for the table."""
    peak = expected(row)
    low, high = bounds(peak, Hardware.model_validate(row["hardware"]))
    return {
        "cell": row["cell"],
        "stage": row["stage"],
        "measured_gib": row["measured_peak_gib"],
        "expected_gib": round(peak.total / GIB, 3),
        "error": round(error(row), 3),
        "held": low <= row["measured_peak_gib"] * GIB <= high,
        "items": {name: round(size / GIB, 3) for name, size in peak._asdict().items() if size},
    }


def to_markdown(document: Row) -> str:
    cells = document["cells"]
    worst = max(cells, key=lambda cell: abs(cell["error"]))
    close, held = (sum(test(cell) for cell in cells) for test in (_close, _held))
    lines = [
        "# The planner's memory against measured peaks",
        "",
        f"`make bench-planner`, {document['made_at'][:10]}, {document['machine']}: one stage's process a row, models "
        f"with random weights. {close} of {len(cells)} expected peaks are within {CLOSE:.0%} of the measured; worst "
        f"is {worst['cell']} with {worst['error']:+.1%}. The range holds {held}.",
        "",
        "| cell | stage | measured, GiB | expected, GiB | error | made of, GiB |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for cell in cells:
        items = ", ".join(
            f"{name.replace('_', ' ')} {size:.2f}" for name, size in cell["items"].items() if size >= 0.01
        )
        lines.append(
            f"| {cell['cell']} | {cell['stage']} | {cell['measured_gib']:.2f} | {cell['expected_gib']:.2f} | "
            f"{cell['error']:+.1%} | {items} |"
        )
    return "\n".join([*lines, ""])


def _close(cell: Row) -> bool:
    return abs(cell["error"]) <= CLOSE


def _held(cell: Row) -> bool:
    held: bool = cell["held"]
    return held


def run(names: Sequence[str]) -> list[Row]:
    """Measure the cells of these names, all where none is given."""
    # With torch and transformers, which who only judges need not load.
    from benchmarks.planner.cells import GRID
    from benchmarks.planner.measure import run_cell

    rows = []
    cells = [cell for cell in GRID if not names or cell.name in names]
    for number, cell in enumerate(cells, 1):
        rows.append(run_cell(cell))
        told = f"{rows[-1]['measured_peak_gib']:.2f} GiB measured, {error(rows[-1]):+.1%}"
        print(f"{number} of {len(cells)}: {cell.name}, {told}", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "planner")
    parser.add_argument("--cell", action="append", default=[], help="measure this one; again for more")
    parser.add_argument("--judge", type=Path, help="judge the rows of this file again, and run nothing")
    arguments = parser.parse_args()
    rows = json.loads(arguments.judge.read_text())["rows"] if arguments.judge else run(arguments.cell)
    document = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.machine(),
        "cells": [judged(row) for row in rows],
        "rows": rows,
    }
    publish(document, to_markdown(document), arguments.out)


if __name__ == "__main__":
    main()
