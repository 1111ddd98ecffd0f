"""`s2d plan --what-if`: options with several values, and the table that they make."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

import typer

if TYPE_CHECKING:
    from s2d.plan.whatif import WhatIfRequest, WhatIfRow

Many = list[str] | None
Value = TypeVar("Value")
#: From so many rows on, starting further processes pays.
MANY_ROWS = 5000


@dataclass(frozen=True)
class Tried:
    """What may have several values: one is the plan's own, several are varied."""

    budgets: tuple[int, ...]
    machines: Mapping[str, tuple[Any, ...]]  # field of `hardware` -> values
    others: Mapping[str, list[Any]]

    @classmethod
    def read(cls, *, labels: Many, devices: Many, gpu: Many, memory_gib: Many, pair: Many, vary: Many) -> Tried:
        """Raises typer.BadParameter for a value that cannot be read."""
        machines = {
            "name": _several("--gpu", gpu, str),
            "devices": _several("--devices", devices, int),
            "memory_gib": _several("--memory-gib", memory_gib, float),
        }
        others = dict(_read_vary(one) for one in vary or ())
        pairs = [_read_pair(one) for one in pair or ()]
        return cls(_several("--labels", labels, int), machines, others | ({"pair": pairs} if pairs else {}))

    @property
    def labels(self) -> int | None:
        """The only number of labels, if there is only one."""
        return _only(self.budgets)

    @property
    def machine(self) -> dict[str, Any]:
        """What all rows have of the machine."""
        return {name: _only(values) for name, values in self.machines.items()}

    def axes(self, hardware: Mapping[str, Any]) -> dict[str, Any]:
        """The varied fields and their values; `hardware` is what all rows have of the machine.

        Raises:
            typer.BadParameter: a field is varied by two options.
        """
        found: dict[str, Any] = {"labeled_budget": self.budgets} if len(self.budgets) > 1 else {}
        several = {name: values for name, values in self.machines.items() if len(values) > 1}
        if several:
            found["hardware"] = [
                {**hardware, **dict(zip(several, one, strict=True))} for one in product(*several.values())
            ]
        if twice := found.keys() & self.others.keys():
            raise typer.BadParameter(f"{', '.join(sorted(twice))} is varied by two options", param_hint="--vary")
        return found | dict(self.others)

    def check(self, *, what_if: bool, csv: bool, out: bool) -> None:
        """Raises typer.BadParameter where an option needs --what-if, or cannot be with it."""
        if what_if and out:
            raise typer.BadParameter("a table is no plan to keep: send it where you want it", param_hint="--out")
        if what_if:
            return
        if csv:
            raise typer.BadParameter("csv needs --what-if", param_hint="--format")
        if self.axes({}):
            raise typer.BadParameter(f"several values of {', '.join(self.axes({}))} need --what-if")


def processes(rows: int) -> int:
    """How many make a table of so many rows."""
    return (os.cpu_count() or 1) if rows >= MANY_ROWS else 1


def show_table(request: WhatIfRequest, rows: Iterable[WhatIfRow], format: str) -> None:
    """Print the rows: a table for people, CSV, or JSON with one row a line."""
    from s2d.cli.output import console, table
    from s2d.plan.whatif_table import People, to_markdown, write_csv

    if format == "csv":
        write_csv(rows, sys.stdout)
    elif format == "json":
        for row in rows:
            typer.echo(row.model_dump_json())
    elif format == "markdown":
        for line in to_markdown(rows, request.varied, priced=request.priced):
            typer.echo(line)
    else:
        people = People(request.varied, priced=request.priced)
        console().print(table(people.header, [people.cells(row) for row in rows]))
        console().print(*people.notes(), sep="\n", markup=False)


def _several(option: str, given: Many, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """`500,1000`, and the option given several times."""
    parts = [part.strip() for one in given or () for part in one.split(",")]
    try:
        return tuple(kind(part) for part in parts)
    except ValueError as err:
        raise typer.BadParameter(str(err), param_hint=option) from err


def _only(values: tuple[Value, ...]) -> Value | None:
    return values[0] if len(values) == 1 else None


def _read_pair(text: str) -> dict[str, str]:
    teacher, comma, student = text.partition(",")
    if not comma:
        raise typer.BadParameter(f"{text!r} is not TEACHER,STUDENT", param_hint="--pair")
    return {"teacher": teacher.strip(), "student": student.strip()}


def _read_vary(text: str) -> tuple[str, list[Any]]:
    name, _, values = text.partition("=")
    try:
        found: list[Any] = json.loads(f"[{values}]")
    except ValueError:
        found = []
    if not found:
        raise typer.BadParameter(f"{text!r} is not FIELD=VALUE,VALUE with JSON values", param_hint="--vary")
    return name, found
