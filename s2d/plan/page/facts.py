"""What the page of a plan tells, in words and numbers: the one source of both layouts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from s2d.plan.document import Plan, Stage
from s2d.plan.graph import WORKFLOW
from s2d.plan.page import sentences
from s2d.plan.page.stages import COLUMNS, makes, memory_notes, row
from s2d.plan.page.units import FULL, LINE, MAYBE, between, duration, level_bar, number, percent, span_bar
from s2d.plan.sizing import USABLE


class Table(NamedTuple):
    """Rows under a header."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Time:
    """A stage in the timeline; `start` and `end` are shares of the whole, by the middles of the ranges."""

    number: str
    stage: str
    start: float
    end: float
    time: str

    @property
    def share(self) -> str:
        return percent(self.end - self.start)

    def bar(self, width: int) -> str:
        return span_bar(self.start, self.end, width)


@dataclass(frozen=True)
class Use:
    """What labels are for, how many, and why so many; `part` is their share of all."""

    use: str
    labels: str
    part: float
    why: str

    @property
    def share(self) -> str:
        return percent(self.part)

    def bar(self, width: int) -> str:
        return span_bar(0.0, self.part, width)


@dataclass(frozen=True)
class Memory:
    """A stage's peak on one device; `low` and `high` are shares of the device. `notes`: what it is made of, and what
    does not fit."""

    stage: str
    peak: str
    low: float
    high: float
    notes: tuple[str, ...]

    def bar(self, width: int) -> str:
        return level_bar(self.low, self.high, USABLE, width)


@dataclass(frozen=True)
class Page:
    """All that is told of a plan."""

    id: str
    answer: str
    about: tuple[tuple[str, str], ...]
    times: tuple[Time, ...]
    costs: Table
    price: str
    uses: tuple[Use, ...]
    advice: tuple[str, ...]
    memory: tuple[Memory, ...]
    legend: str
    stages: Table
    gates: tuple[str, ...]
    warnings: tuple[str, ...]
    whys: tuple[tuple[str, str], ...]


def page_of(plan: Plan) -> Page:
    """What the plan tells a person."""
    gib = plan.hardware.memory_gib
    return Page(
        id=plan.id,
        answer=sentences.answer(plan),
        about=tuple(sentences.about(plan)),
        times=tuple(_times(plan.stages)),
        costs=_costs(plan),
        price=sentences.price(plan),
        uses=tuple(_uses(plan)),
        advice=tuple(sentences.advice(plan)),
        memory=tuple(_memory(plan)),
        legend=f"{FULL} low end, {MAYBE} high end, {LINE} usable: {number(USABLE * gib)} of {number(gib)} GiB",
        stages=Table(COLUMNS, tuple(row(plan, stage) for stage in plan.stages)),
        gates=tuple(sentences.gates(plan)),
        warnings=tuple(warning.message for warning in plan.warnings),
        whys=tuple((makes(stage), stage.why) for stage in plan.stages),
    )


def _times(stages: Sequence[Stage]) -> Iterator[Time]:
    middles = [(stage.estimate.seconds.low + stage.estimate.seconds.high) / 2 for stage in stages]
    borders = pairwise(border / sum(middles) for border in accumulate(middles, initial=0.0))
    for number_, (stage, (start, end)) in enumerate(zip(stages, borders, strict=True), 1):
        yield Time(str(number_), stage.id, start, end, duration(stage.estimate.seconds))


def _costs(plan: Plan) -> Table:
    """The whole job; where it has controls, also the workflow and the controls on their own."""
    workflow, controls = ([one for one in plan.stages if (one.arm == WORKFLOW) is own] for own in (True, False))
    parts = [("workflow and test", workflow), ("controls", controls)] if controls else []
    rows = [(name, *sentences.cost(plan, stages)) for name, stages in (*parts, ("in all", plan.stages))]
    return Table(("", "time", "device-hours", "cost")[: len(rows[-1])], tuple(rows))


def _uses(plan: Plan) -> Iterator[Use]:
    data, labels = plan.data, plan.data.labels
    told = (
        ("teacher RL", labels.teacher_rl, data.why_teacher),
        ("student RL", labels.student_rl, data.why_student),
        ("validation", labels.validation, "The gates are judged on them."),
        ("test", labels.test, "Read once, for the report."),
    )
    for use, count, why in told:
        yield Use(use, f"{count:,}", count / labels.total, why)


def _memory(plan: Plan) -> Iterator[Memory]:
    device_gib, told = plan.hardware.memory_gib, dict[tuple[str, ...], str]()
    for stage in plan.stages:
        peak, notes = stage.estimate.memory_gib, tuple(memory_notes(stage))
        # Most controls are copies of other stages, and a page is read by a person.
        first = told.setdefault((between(peak), *notes), stage.id)
        shown = notes if first == stage.id else (f"as {first}",)
        yield Memory(stage.id, between(peak), peak.low / device_gib, peak.high / device_gib, shown)
