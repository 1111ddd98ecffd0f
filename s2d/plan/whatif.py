"""What if: one plan request with some of its fields varied, answered as a table.

Every combination of the values is a row, and a row says what `make_plan` would say: it is drafted by the same code. The
files of a pair are read once for all of its rows, and no document is written. A combination that cannot be planned is a
row too, with the reason. Nothing is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from s2d.errors import InvalidPlan, S2DError
from s2d.plan.document import LabelAllocation, Lora, Range, Stage, Training
from s2d.plan.frozen import Frozen
from s2d.plan.machine import Hardware
from s2d.plan.machines import Machines
from s2d.plan.models import ModelPolicy
from s2d.plan.page.sentences import span
from s2d.plan.page.units import scaled
from s2d.plan.prompting import Prompting
from s2d.plan.request import (
    MAX_LABELS,
    DataSummary,
    HardwareRequest,
    LabelOverrides,
    PlanRequest,
    read_fields,
    read_request,
)
from s2d.plan.service import Draft, Pair, draft_plan, read_pair

#: Rows of one table.
MAX_ROWS = 100_000
#: Rows that a process makes at a time.
PART = 2000
#: Pairs of one table: each may ask the hub.
MAX_PAIRS = 64

Labels = Annotated[int, Field(ge=1, le=MAX_LABELS)]
Prompts = Annotated[int, Field(ge=0, le=MAX_LABELS)]
Tokens = Annotated[int, Field(ge=1)]


class ModelPair(Frozen):
    """Two models to try."""

    teacher: str = Field(min_length=1, max_length=512)
    student: str = Field(min_length=1, max_length=512)


class Vary(Frozen):
    """Values to try. A field without values stays as the plan request has it; `null` lets the planner decide."""

    pair: tuple[ModelPair, ...] = Field(default=(), max_length=MAX_PAIRS)
    hardware: tuple[HardwareRequest, ...] = ()
    lora: tuple[bool | Lora | None, ...] = ()
    student_rl: tuple[bool | None, ...] = ()
    max_completion_tokens: tuple[Tokens | None, ...] = ()
    unlabeled_prompts: tuple[Prompts, ...] = ()
    labels: tuple[LabelOverrides, ...] = ()
    labeled_budget: tuple[Labels, ...] = ()


#: In the order of the table: the last one changes from row to row.
AXES = tuple(Vary.model_fields)


class WhatIfRequest(Frozen):
    """A plan request, and what to vary of it."""

    plan: PlanRequest = Field(description="The body of POST /v1/plans.")
    vary: Vary

    @property
    def varied(self) -> tuple[str, ...]:
        """The fields that differ from row to row."""
        return tuple(name for name in AXES if len(getattr(self.vary, name)) > 1)

    @property
    def count(self) -> int:
        """Rows of the table."""
        return math.prod(len(getattr(self.vary, name)) for name in self.varied)

    @property
    def priced(self) -> bool:
        """Whether some row has a price, and so a cost."""
        return any(one.price_per_hour is not None for one in self.vary.hardware or (self.plan.hardware,))


class Asked(Frozen):
    """What a row was asked for, of the fields that can be varied."""

    teacher: str
    student: str
    hardware: HardwareRequest = HardwareRequest()
    lora: bool | Lora | None = None
    student_rl: bool | None = None
    max_completion_tokens: int | None = None
    unlabeled_prompts: int | None = None
    labels: LabelOverrides = LabelOverrides()
    labeled_budget: int | None = None


_ASKED = tuple(Asked.model_fields)
#: What no plan request can be without.
_NEEDED = ("teacher", "student", "labeled_budget")


class Refusal(Frozen):
    """Why there is no plan, as POST /v1/plans would say it."""

    code: str
    message: str
    param: str | None


class StageLine(Frozen):
    """A stage of the plan. One that does not train has neither steps nor weights."""

    id: str
    steps: int | None
    weights: Literal["all", "lora"] | None = Field(description="What is trained: all weights, or adapters.")


class Outcome(Frozen):
    """The plan in short."""

    hardware: Hardware
    labels: LabelAllocation
    bridge_prompts: int
    max_completion_tokens: int
    stages: tuple[StageLine, ...]
    memory_gib: Range = Field(description="Peak per device, of all stages.")
    seconds: Range = Field(description="Of all stages, one after the other.")
    device_hours: Range = Field(description="Every device counts for the whole time.")
    cost: Range | None = Field(description="Device-hours x hardware.price_per_hour; null without a price.")
    warnings: tuple[str, ...] = Field(description="Their codes.")


class WhatIfRow(Frozen):
    """One combination: what was asked, and what would be planned or why nothing can be."""

    asked: Asked
    feasible: bool
    outcome: Outcome | None = None
    refusal: Refusal | None = None


class WhatIf(Frozen):
    """The table."""

    varied: tuple[str, ...] = Field(description="The fields that differ from row to row.")
    rows: tuple[WhatIfRow, ...]


class _Around(NamedTuple):
    """What is the same for all rows; see `make_plan`."""

    data: DataSummary | None
    hardware: Hardware
    policy: ModelPolicy
    machines: Machines | None


def read_what_if(plan: Mapping[str, Any], vary: Mapping[str, Any]) -> WhatIfRequest:
    """A request from plain values (a command line, a file), where a varied field needs no value in `plan`.

    Raises:
        InvalidPlan: unknown, missing or impossible fields, each named with the reason.
    """
    values = read_fields(Vary, vary)
    first = next(_combinations(values), {})
    # Nothing else of it: a combination that is impossible is a row with the reason, also when it is the first.
    needed = {name: first[name] for name in _NEEDED if name in first}
    return WhatIfRequest(plan=read_request({**needed, **plan}), vary=values)


def what_if(
    request: WhatIfRequest,
    data: DataSummary | None,
    hardware: Hardware,
    policy: ModelPolicy,
    machines: Machines | None = None,
    *,
    most: int = MAX_ROWS,
    processes: int = 1,
) -> Iterator[WhatIfRow]:
    """The rows in order, as they are made; several processes help from some thousand rows on.

    The other arguments are those of `make_plan`.

    Raises:
        InvalidPlan: more than `most` rows.
    """
    if request.count > most:
        raise InvalidPlan(
            f"These values make {request.count:,} rows, and {most:,} are the most: ask for a part of them.",
            param="vary",
        )
    make = partial(_rows, request, _Around(data, hardware, policy, machines))
    return make(0, request.count) if processes == 1 else _side_by_side(make, request.count, processes)


def summarize(draft: Draft) -> Outcome:
    """A draft in short."""
    setting, stages = draft.setting, draft.stages
    memory, seconds = [stage.estimate.memory_gib for stage in stages], span(stages)
    hours, price = scaled(seconds, setting.hardware.devices / 3600), setting.hardware.price_per_hour
    return Outcome(
        hardware=setting.hardware,
        labels=setting.labels,
        bridge_prompts=setting.bridge_prompts,
        max_completion_tokens=draft.max_completion_tokens,
        stages=tuple(_line(stage) for stage in stages),
        memory_gib=Range(low=max(one.low for one in memory), high=max(one.high for one in memory)),
        seconds=seconds,
        device_hours=hours,
        cost=None if price is None else scaled(hours, price),
        warnings=tuple(dict.fromkeys(warning.code for warning in draft.warnings)),
    )


def _side_by_side(make: partial[Iterator[WhatIfRow]], count: int, processes: int) -> Iterator[WhatIfRow]:
    """Parts of the table, each made in a process of its own."""
    parts = [(start, min(count, start + PART)) for start in range(0, count, PART)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for rows in pool.map(partial(_part, make), parts):
            yield from rows


def _part(make: partial[Iterator[WhatIfRow]], bounds: tuple[int, int]) -> list[WhatIfRow]:
    return list(make(*bounds))


def _rows(request: WhatIfRequest, around: _Around, start: int, stop: int) -> Iterator[WhatIfRow]:
    fixed = {name: getattr(request.plan, name) for name in request.plan.model_fields_set}
    known: dict[tuple[str, str], Pair | S2DError] = {}
    for values in islice(_combinations(request.vary), start, stop):
        fields = fixed | values
        names = fields["teacher"], fields["student"]
        if names not in known:
            known[names] = _pair(*names, around.policy, request.plan.prompt)
        yield _row(fields, around, known[names])


def _combinations(vary: Vary) -> Iterator[dict[str, Any]]:
    """Every combination, as fields of a plan request."""
    axes = [[{name: value} for value in getattr(vary, name)] for name in AXES if getattr(vary, name)]
    for values in product(*axes):
        fields = {name: value for one in values for name, value in one.items()}
        pair: ModelPair | None = fields.pop("pair", None)
        yield fields | ({"teacher": pair.teacher, "student": pair.student} if pair else {})


def _pair(teacher: str, student: str, policy: ModelPolicy, prompting: Prompting) -> Pair | S2DError:
    try:
        return read_pair(teacher, student, policy, prompting)
    except S2DError as err:
        return err


def _row(fields: Mapping[str, Any], around: _Around, pair: Pair | S2DError) -> WhatIfRow:
    asked = Asked(**{name: fields[name] for name in _ASKED if name in fields})
    try:
        plan = read_request(fields)
        if isinstance(pair, S2DError):
            raise pair
        draft = draft_plan(plan, around.data, around.hardware, pair, around.machines)
    except S2DError as err:
        refusal = Refusal(code=err.code, message=err.message, param=err.param)
        return WhatIfRow(asked=asked, feasible=False, refusal=refusal)
    return WhatIfRow(asked=asked, feasible=True, outcome=summarize(draft))


def _line(stage: Stage) -> StageLine:
    if not isinstance(stage, Training):
        return StageLine(id=stage.id, steps=None, weights=None)
    return StageLine(id=stage.id, steps=stage.steps, weights="lora" if stage.lora else "all")
