"""How fast the planner is: a plan, a what-if table of 100,000 rows, and importing it, which loads no torch.

`python -m benchmarks.whatif`. Everything is timed on the clock and in CPU time, as the machine may be shared.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.output import publish
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.plan.whatif import MAX_ROWS, WhatIfRequest, read_what_if, what_if

RESULTS = Path(__file__).parent / "results"
OFFLINE = ModelPolicy(allow_hub=False)
PAIRS = (
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"),
    ("Qwen/Qwen3-32B", "Qwen/Qwen3-4B"),
    ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"),
    ("meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
)
MACHINES = (
    {"name": "H100"},
    {"name": "H100", "devices": 8},
    {"name": "A100", "devices": 4},
    {"name": "4090"},
    {"name": "L4", "devices": 2},
)
PLANS, SAMPLE, IMPORTS = 300, 5000, 5
IMPORT = "import sys, s2d.plan.whatif; assert not {'torch', 'transformers'} & sys.modules.keys()"


class Timed:
    """What a block took."""

    wall_s = cpu_s = 0.0


@contextmanager
def timed() -> Iterator[Timed]:
    """Seconds on the clock, and of CPU, of this process and of those that it waited for."""
    found, wall, cpu = Timed(), time.perf_counter(), _cpu()
    yield found
    found.wall_s, found.cpu_s = time.perf_counter() - wall, _cpu() - cpu


def _cpu() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def request_of(rows: int) -> WhatIfRequest:
    """A table of about so many rows: pairs x machines x LoRA x completions x budgets."""
    vary: dict[str, Any] = {
        "pair": [{"teacher": teacher, "student": student} for teacher, student in PAIRS],
        "hardware": list(MACHINES),
        "lora": [None, True],
        "max_completion_tokens": [1024, 4096],
    }
    each = len(PAIRS) * len(MACHINES) * 4
    vary["labeled_budget"] = [200 + 11 * i for i in range(max(1, rows // each))]
    return read_what_if({"unlabeled_prompts": 8000}, vary)


def measure_table(rows: int, processes: int) -> dict[str, Any]:
    request, feasible = request_of(rows), 0
    with timed() as took:
        for row in what_if(request, None, detect(), OFFLINE, processes=processes):
            feasible += row.feasible
    return {
        "rows": request.count,
        "feasible": feasible,
        "processes": processes,
        "wall_s": round(took.wall_s, 2),
        "cpu_s": round(took.cpu_s, 2),
        "rows_per_s": round(request.count / took.wall_s),
        "cpu_ms_per_row": round(1000 * took.cpu_s / request.count, 3),
    }


def measure_plans(count: int) -> dict[str, Any]:
    """Whole plans, each with its document and its hash, for as many different requests."""
    machine, each = detect(), []
    for number in range(count):
        (teacher, student), hardware = PAIRS[0], MACHINES[number % 3]
        fields = {"teacher": teacher, "student": student, "hardware": hardware, "labeled_budget": 500 + number}
        with timed() as took:
            make_plan(read_request(fields), None, machine, OFFLINE)
        each.append(took)
    return {
        "plans": count,
        "wall_ms_median": round(1000 * statistics.median(one.wall_s for one in each), 2),
        "cpu_ms_mean": round(1000 * statistics.mean(one.cpu_s for one in each), 2),
        "plans_per_cpu_s": round(count / sum(one.cpu_s for one in each)),
    }


def measure_import(times: int) -> dict[str, float]:
    """CPU milliseconds of importing the planner, beyond an interpreter that imports nothing."""
    bare, full = ([_run(code) for _ in range(times)] for code in ("pass", IMPORT))
    return {"cpu_ms": round(1000 * (min(full) - min(bare)), 1)}


def _run(code: str) -> float:
    with timed() as took:
        subprocess.run([sys.executable, "-c", code], check=True)
    return took.cpu_s


def to_markdown(found: dict[str, Any]) -> str:
    one, table, plans = found["one_process"], found["table"], found["plans"]
    return (
        "# How fast the planner is\n\n"
        f"`python -m benchmarks.whatif`, {found['date']}, {found['machine']}, load {found['load']:.1f} before. "
        "CPU time is that of all processes; the clock is shared with whatever else ran.\n\n"
        "| | clock | CPU |\n| --- | ---: | ---: |\n"
        f"| a plan with document and hash, {plans['plans']} different ones | {plans['wall_ms_median']} ms (median) | "
        f"{plans['cpu_ms_mean']} ms (mean) |\n"
        f"| {one['rows']:,} what-if rows, one process | {one['rows_per_s']:,} rows/s | "
        f"{one['cpu_ms_per_row']} ms a row |\n"
        f"| {table['rows']:,} what-if rows, {table['processes']} processes | {table['wall_s']:.0f} s, "
        f"{table['rows_per_s']:,} rows/s | {table['cpu_s']:.0f} s |\n"
        f"| importing it, no torch | | {found['import']['cpu_ms']:.0f} ms |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=MAX_ROWS)
    parser.add_argument("--out", type=Path, default=RESULTS / "whatif")
    options = parser.parse_args()
    found = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": os.getloadavg()[0],
        "import": measure_import(IMPORTS),
        "plans": measure_plans(PLANS),
        "one_process": measure_table(min(SAMPLE, options.rows), 1),
        "table": measure_table(options.rows, os.cpu_count() or 1),
    }
    publish(found, to_markdown(found), options.out)


if __name__ == "__main__":
    main()
