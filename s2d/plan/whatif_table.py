"""A what-if table as text: for people (the terminal, Markdown) and as CSV for programs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Any

from s2d.plan.document import Lora
from s2d.plan.machine import Hardware
from s2d.plan.page.units import between, duration, money, number
from s2d.plan.request import HardwareRequest
from s2d.plan.whatif import Asked, Outcome, WhatIfRow

#: Varied field -> its column, and what a cell says.
_ASKED: dict[str, tuple[str, Callable[[Asked], str]]] = {
    "pair": ("models", lambda asked: f"{_short(asked.teacher)} → {_short(asked.student)}"),
    "hardware": ("machine", lambda asked: machine(asked.hardware)),
    "lora": ("LoRA asked", lambda asked: _choice(asked.lora)),
    "student_rl": ("stage 3 asked", lambda asked: _choice(asked.student_rl)),
    "max_completion_tokens": ("completion", lambda asked: _choice(asked.max_completion_tokens)),
    "unlabeled_prompts": ("unlabeled", lambda asked: _choice(asked.unlabeled_prompts)),
    "labels": ("labels asked", lambda asked: _uses(asked.labels.model_dump(exclude_none=True))),
    "labeled_budget": ("labels", lambda asked: _choice(asked.labeled_budget)),
}
_OUTCOME = ("teacher RL", "student RL", "LoRA in", "GiB/device", "time", "device-hours")
_CSV_ASKED = ("teacher", "student", "lora", "student_rl", "max_completion_tokens", "unlabeled_prompts")
_CSV_LABELS = ("teacher_rl", "student_rl", "validation", "test")
_CSV_TRAINED = ("teacher_rl", "warmup", "opd", "student_rl")
_CSV_RANGES = ("memory_gib", "seconds", "device_hours", "cost")
_CSV_COLUMNS = (
    *(*_CSV_ASKED, "machine", "labeled_budget", "feasible", "refusal", "message"),
    *(f"labels_{use}" for use in _CSV_LABELS),
    *(f"steps_{stage}" for stage in _CSV_TRAINED),
    "lora_in",
    *(f"{name}_{end}" for name in _CSV_RANGES for end in ("low", "high")),
    "warnings",
)


class People:
    """The table for people: what differs from row to row, then what is planned. Notes are told once, below it."""

    def __init__(self, varied: Iterable[str], *, priced: bool) -> None:
        self._asked = [_ASKED[name] for name in varied]
        self._priced = priced
        self._numbers: dict[str, int] = {}

    @property
    def header(self) -> tuple[str, ...]:
        cost = ("cost",) if self._priced else ()
        return (*(name for name, _ in self._asked), "fits", *_OUTCOME, *cost, "notes")

    def cells(self, row: WhatIfRow) -> tuple[str, ...]:
        """The row under the header."""
        asked = tuple(cell(row.asked) for _, cell in self._asked)
        planned = tuple(_planned(row.outcome, self._priced)) if row.outcome else ("",) * (len(_OUTCOME) + self._priced)
        told = row.outcome.warnings if row.outcome else (row.refusal.message,) if row.refusal else ()
        return (*asked, "yes" if row.feasible else "no", *planned, ", ".join(self._number(one) for one in told))

    def notes(self) -> Iterator[str]:
        """What the numbers in the last column stand for: why there is no plan, and the codes of warnings."""
        return (f"{number_}. {text}" for text, number_ in self._numbers.items())

    def _number(self, text: str) -> str:
        return str(self._numbers.setdefault(text, len(self._numbers) + 1))


def to_markdown(rows: Iterable[WhatIfRow], varied: Iterable[str], *, priced: bool) -> Iterator[str]:
    """The lines of a Markdown table, and of the notes below it."""
    people = People(varied, priced=priced)
    yield from (_line(people.header), _line("---" for _ in people.header))
    yield from (_line(people.cells(row)) for row in rows)
    yield ""
    yield from people.notes()


def write_csv(rows: Iterable[WhatIfRow], file: IO[str]) -> None:
    """One line a row, plain numbers, under names that say the unit; the header comes first."""
    writer = csv.DictWriter(file, _CSV_COLUMNS, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(dict(_plain(row)) for row in rows)


def machine(asked: HardwareRequest | Hardware) -> str:
    """`4 x H100`, `CPU`, `24 GiB`: what was said of it."""
    if asked.device == "cpu":
        return "CPU" if asked.memory_gib is None else f"CPU, {number(asked.memory_gib)} GiB"
    name = asked.name or ("GPU" if asked.device else "this machine")
    memory = f", {number(asked.memory_gib)} GiB" if asked.memory_gib else ""
    return f"{asked.devices} x {name}{memory}" if asked.devices else f"{name}{memory}"


def _planned(outcome: Outcome, priced: bool) -> Iterator[str]:
    labels = outcome.labels
    yield from (f"{labels.teacher_rl:,}", f"{labels.student_rl:,}")
    yield ", ".join(_adapted(outcome)) or "none"
    yield from (between(outcome.memory_gib), duration(outcome.seconds), between(outcome.device_hours))
    if priced:
        yield money(outcome.cost) if outcome.cost else ""


def _adapted(outcome: Outcome) -> list[str]:
    return [stage.id for stage in outcome.stages if stage.weights == "lora"]


def _plain(row: WhatIfRow) -> Iterator[tuple[str, Any]]:
    asked = row.asked
    for name in _CSV_ASKED:
        value = getattr(asked, name)
        yield name, _choice(value) if isinstance(value, Lora) else value
    yield "machine", machine(asked.hardware)
    yield "labeled_budget", asked.labeled_budget
    yield "feasible", row.feasible
    if row.refusal is not None:
        yield from (("refusal", row.refusal.code), ("message", row.refusal.message))
    if row.outcome is not None:
        yield from _plain_outcome(row.outcome)


def _plain_outcome(outcome: Outcome) -> Iterator[tuple[str, Any]]:
    steps = {stage.id: stage.steps for stage in outcome.stages}
    yield from ((f"labels_{use}", getattr(outcome.labels, use)) for use in _CSV_LABELS)
    yield from ((f"steps_{stage}", steps[stage]) for stage in _CSV_TRAINED if stage in steps)
    yield "lora_in", " ".join(_adapted(outcome))
    for name in _CSV_RANGES:
        value = getattr(outcome, name)
        if value is not None:
            yield from ((f"{name}_low", value.low), (f"{name}_high", value.high))
    yield "warnings", " ".join(outcome.warnings)


def _line(values: Iterable[str]) -> str:
    return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"


def _short(model: str) -> str:
    """The last part of a hub id or of a path."""
    return model.rstrip("/").rpartition("/")[2]


def _choice(value: bool | int | Lora | None) -> str:
    if value is None:
        return "auto"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"rank {value.rank}" if isinstance(value, Lora) else f"{value:,}"


def _uses(fixed: dict[str, int]) -> str:
    return ", ".join(f"{use} {count:,}" for use, count in fixed.items()) or "auto"
