"""The question that people come with, answered for ten pairs and machines: the tables in docs/planning.md.

`python -m benchmarks.planning_table` writes them anew; a test holds that they are what the planner says now.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from s2d.plan.document import LabelAllocation, Plan, Range
from s2d.plan.hardware import known_gpu
from s2d.plan.machine import Hardware
from s2d.plan.models import ModelPolicy
from s2d.plan.page.units import between, duration, number
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.plan.sizing import USABLE
from s2d.plan.whatif import WhatIfRow, read_what_if, what_if

PAGE = Path(__file__).parents[1] / "docs" / "planning.md"
LABELS, WEEKEND_H = 1200, 60
#: The first is the planner's default; the shorter ones are tried where it does not fit, or not into a weekend.
COMPLETIONS = (4096, 2048, 1024, 512, 256)
#: Stands for the machine that plans; every row says all that matters of its own.
HERE = Hardware(device="cpu", devices=1, memory_gib=16, cpu_threads=8, tflops=0.8, bandwidth_gbs=15)
OFFLINE = ModelPolicy(allow_hub=False)


class Case(NamedTuple):
    """A pair and a machine that people have; `gpu` None is a laptop's CPU."""

    teacher: str
    student: str
    gpu: str | None
    devices: int = 1

    @property
    def hardware(self) -> dict[str, object]:
        if self.gpu is None:
            return {"device": "cpu", "memory_gib": 16, "cpu_threads": 8}
        return {"name": self.gpu, "devices": self.devices}

    @property
    def names(self) -> str:
        return " → ".join(name.rpartition("/")[2] for name in (self.teacher, self.student))

    @property
    def machine(self) -> str:
        return f"{self.devices} x {self.gpu}" if self.gpu else "CPU, 8 threads, 16 GiB"


CASES = (
    Case("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B", "H100"),
    Case("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B", "A100"),
    Case("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B", "A100", 4),
    Case("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B", "RTX 4090"),
    Case("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B", "RTX 4090"),
    Case("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B", "L4"),
    Case("Qwen/Qwen3-32B", "Qwen/Qwen3-4B", "H100", 8),
    Case("meta-llama/Llama-3.2-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "A100 40GB"),
    Case("Qwen/Qwen2.5-Math-7B-Instruct", "Qwen/Qwen2.5-Math-1.5B-Instruct", "H100"),
    Case("HuggingFaceTB/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", None),
)
SOURCES = {
    "H100": "[H100 SXM](https://www.nvidia.com/en-us/data-center/h100/), half of the figure with sparsity",
    "A100": "[A100 80 GB PCIe](https://www.nvidia.com/en-us/data-center/a100/)",
    "A100 40GB": "[A100 40 GB](https://www.nvidia.com/en-us/data-center/a100/)",
    "RTX 4090": "[Ada architecture](https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf)"
    ", bf16 with fp32 accumulation",
    "L4": "[L4](https://www.nvidia.com/en-us/data-center/l4/), half of the figure with sparsity",
}


def tables() -> dict[str, str]:
    """The generated parts of the page by the names of their markers."""
    plan = _plan(CASES[0])
    return {
        "labels": _labels(plan.data.labels),
        "answers": _table(
            ("pair", "machine", "fits", "trained by LoRA", "peak, GiB of usable", "time", "device-hours", "a weekend"),
            (_answer(number_, case) for number_, case in enumerate(CASES, 1)),
        ),
        "refusals": "\n".join(_refusals()),
        "stages": _table(("stage", "steps", "tokens", "time", "peak, GiB"), _stages(plan)),
        "memory": _table(("what", "GiB"), _memory(plan)),
        "machines": _table(("GPU", "GiB that it reports", "dense bf16 TFLOP/s", "GB/s", "source"), _machines()),
    }


def rows_of(case: Case) -> list[WhatIfRow]:
    """The case with every length of completions, the longest first."""
    plan = {"teacher": case.teacher, "student": case.student, "labeled_budget": LABELS, "hardware": case.hardware}
    request = read_what_if(plan, {"max_completion_tokens": COMPLETIONS})
    return list(what_if(request, None, HERE, OFFLINE))


def written(page: str) -> str:
    """The page with its tables made anew."""
    for name, text in tables().items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        page = f"{before}{start}{text}\n{end}{after}"
    return page


def _answer(number_: int, case: Case) -> tuple[str, ...]:
    first, *shorter = rows_of(case)
    pair = f"{number_}. {case.names}"
    if first.outcome is None:
        fits = next((row for row in shorter if row.outcome), None)
        told = f"no; with {_tokens(fits)}" if fits else "no"
        return (pair, case.machine, told, "", "", "", "", _weekend(shorter) if fits else "no")
    found = first.outcome
    return (
        pair,
        case.machine,
        "yes",
        ", ".join(stage.id for stage in found.stages if stage.weights == "lora") or "nothing",
        f"{between(found.memory_gib)} of {number(USABLE * found.hardware.memory_gib)}",
        duration(found.seconds),
        between(found.device_hours),
        _weekend([first, *shorter]),
    )


def _weekend(rows: Sequence[WhatIfRow]) -> str:
    """Whether the whole range is within the weekend, and with which completions it would be."""
    planned = [(row, row.outcome.seconds) for row in rows if row.outcome]
    whole = next((row for row, seconds in planned if seconds.high <= 3600 * WEEKEND_H), None)
    if whole is rows[0]:
        return "yes"
    first = "maybe" if planned[0][1].low <= 3600 * WEEKEND_H else "no"
    return f"{first}; yes with {_tokens(whole)}" if whole else first


def _tokens(row: WhatIfRow) -> str:
    return f"{row.asked.max_completion_tokens:,} tokens"


def _refusals() -> Iterator[str]:
    """Why the planner says no, in its own words."""
    for number_, case in enumerate(CASES, 1):
        refusal = rows_of(case)[0].refusal
        if refusal is not None:
            yield f"- {number_}: {refusal.message}"


def _labels(labels: LabelAllocation) -> str:
    half = 100 * 1.96 * 0.5 / math.sqrt(labels.test)
    return (
        f"Of the {labels.total:,} labels {labels.teacher_rl:,} train the teacher, {labels.student_rl:,} are held out "
        f"for the student after the bridge, {labels.validation:,} judge the gates and {labels.test:,} test. The test "
        f"tells an accuracy of one half to ± {half:.1f} points (95 %)."
    )


def _plan(case: Case) -> Plan:
    fields = {"teacher": case.teacher, "student": case.student, "labeled_budget": LABELS, "hardware": case.hardware}
    return make_plan(read_request(fields), None, HERE, OFFLINE)


def _stages(plan: Plan) -> Iterator[tuple[str, ...]]:
    for stage in plan.stages:
        tokens = Range(low=stage.estimate.tokens.low / 1e6, high=stage.estimate.tokens.high / 1e6)
        steps = str(getattr(stage, "steps", ""))
        peak, seconds = between(stage.estimate.memory_gib), duration(stage.estimate.seconds)
        yield stage.id, steps, between(tokens, "million"), seconds, peak


def _memory(plan: Plan) -> Iterator[tuple[str, str]]:
    """What the fullest stage's peak is made of."""
    fullest = max(plan.stages, key=lambda stage: stage.estimate.memory_gib.high)
    for item in fullest.estimate.memory:
        yield item.name.replace("_", " "), f"{item.gib:,.1f}"


def _machines() -> Iterator[tuple[str, ...]]:
    for name, source in SOURCES.items():
        gpu = known_gpu(name)
        assert gpu is not None, name
        yield name, number(gpu.memory_gib), number(gpu.tflops), number(gpu.bandwidth_gbs), source


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    PAGE.write_text(written(PAGE.read_text()))
    print(f"{PAGE} is up to date")


if __name__ == "__main__":
    main()
