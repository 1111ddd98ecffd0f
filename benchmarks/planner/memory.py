"""Predicted peaks of memory against measured ones; a peak is what the stage itself reports (`s2d.stages.peak`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from s2d.plan.document import Lora, Model, Sampling
from s2d.plan.machine import Hardware
from s2d.plan.memory import GIB, Memory, Way, Work, bounds, training
from s2d.plan.sizing import Drawing

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
    return training(work, machine, Way(lora, plan.get("sharded", False)), batch, plan["gradient_checkpointing"])


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


def to_markdown(cells: Sequence[Row]) -> list[str]:
    worst = max(cells, key=lambda cell: abs(cell["error"]))
    close, held = (sum(test(cell) for cell in cells) for test in (_close, _held))
    lines = [
        f"{close} of {len(cells)} expected peaks are within {CLOSE:.0%} of the measured; worst is {worst['cell']} with "
        f"{worst['error']:+.1%}. The range holds {held}.",
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
    return lines


def _close(cell: Row) -> bool:
    return abs(cell["error"]) <= CLOSE


def _held(cell: Row) -> bool:
    held: bool = cell["held"]
    return held
