"""`python -m benchmarks.planner` (make bench-planner): twenty minutes of real stages; let nothing run beside it."""

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
from benchmarks.planner import memory, times
from benchmarks.planner.cells import GRID, TIMED, Cell
from benchmarks.planner.measure import Row, run_cell
from s2d.cli.probe import measured
from s2d.plan.hardware import detect
from s2d.plan.machine import Rates

RESULTS = Path(__file__).parents[1] / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "planner")
    parser.add_argument("--judge", type=Path, help="judge the rows of this file again, and run nothing")
    arguments = parser.parse_args()
    if arguments.judge:
        stored = json.loads(arguments.judge.read_text())
        made_at, rates = stored["made_at"], Rates.model_validate(stored["times"]["rates"])
        rows, timed = stored["memory"]["rows"], stored["times"]["rows"]
    else:
        made_at = datetime.now(UTC).isoformat(timespec="seconds")
        # One thread, as the cells have.
        rates = measured(detect().model_copy(update={"cpu_threads": 1}))
        rows, timed = run(GRID), run(TIMED)
    document = judged(rates, rows, timed) | {"made_at": made_at, "machine": platform.machine()}
    publish(document, to_markdown(document), arguments.out)


def run(cells: Sequence[Cell]) -> list[Row]:
    rows = []
    for number, cell in enumerate(cells, 1):
        rows.append(run_cell(cell))
        told = f"{rows[-1]['seconds_in_stage']} s, {rows[-1]['measured_peak_gib']:.2f} GiB"
        print(f"{number} of {len(cells)}: {cell.name}, {told}", file=sys.stderr, flush=True)
    return rows


def judged(rates: Rates, rows: Sequence[Row], timed: Sequence[Row]) -> dict[str, Any]:
    return {
        "memory": {"cells": [memory.judged(row) for row in rows], "rows": rows},
        "held_out": {"cells": [memory.judged(row) for row in timed]},
        "times": {**times.judged(rates, timed), "rows": timed},
    }


def to_markdown(document: dict[str, Any]) -> str:
    return "\n".join(
        [
            "# The planner against measurement",
            "",
            f"`make bench-planner`, {document['made_at'][:10]}, {document['machine']}, one thread: one stage's process "
            "a row, models of 2 to 110 million parameters with random weights. `planner.json` has every row whole; "
            "`python -m benchmarks.planner --judge FILE` judges stored rows by the planner of today.",
            "",
            "## Memory",
            "The planner's constants for a CPU's allocator were fitted to these rows.",
            "",
            *memory.to_markdown(document["memory"]["cells"]),
            "",
            "## Memory, held out",
            "The stages below, which no constant was fitted to.",
            "",
            *memory.to_markdown(document["held_out"]["cells"]),
            "",
            "## Time",
            *times.to_markdown(document["times"]),
            "",
        ]
    )


if __name__ == "__main__":
    main()
