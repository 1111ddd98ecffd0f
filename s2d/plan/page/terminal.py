"""The page for a terminal of 80 columns or more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.constrain import Constrain
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from s2d.plan.page.facts import Memory, Page
from s2d.plan.page.units import EMPTY, FULL, LINE, MAYBE

#: Longer lines are hard to read.
MAX_WIDTH = 120
#: Cells of the shortest bar that still says something.
MIN_BAR = 12


class Bar:
    """A bar as wide as its column: `draw` makes it of so many cells."""

    def __init__(self, draw: Callable[[int], str], style: str) -> None:
        self._draw = draw
        self._style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        bar = Text(self._draw(options.max_width), no_wrap=True)
        for letters, style in ((FULL + MAYBE, self._style), (EMPTY, "dim"), (LINE, "bold")):
            bar.highlight_regex(f"[{letters}]+", style)
        yield bar

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(MIN_BAR, options.max_width), options.max_width)


def lay_out(page: Page) -> RenderableType:
    """The whole page."""
    parts: list[RenderableType] = [Text(page.id, style="bold"), Text(page.answer), Text(), _about(page)]
    for title, body in _sections(page):
        parts += [Text(), Text(title, style="bold"), *(Padding(one, (0, 0, 0, 2)) for one in body)]
    return Constrain(Group(*parts), MAX_WIDTH)


def _sections(page: Page) -> Iterator[tuple[str, Sequence[RenderableType]]]:
    yield "Timeline", (_times(page),)
    yield "Cost", (_costs(page), Text(page.price))
    yield "Labels", (_uses(page),)
    if page.advice:
        yield "Advice", [Text(one) for one in page.advice]
    yield "Memory of a device, GiB", (_memory(page), Text(page.legend))
    yield "Stages", (_stages(page),)
    yield "Gates", [Text(gate) for gate in page.gates]
    if page.warnings:
        yield "Warnings", [Text(f"! {warning}", style="yellow") for warning in page.warnings]
    yield "Why", [Text.assemble((stage, "bold"), f": {why}") for stage, why in page.whys]


def _about(page: Page) -> Table:
    return _table((_narrow(), _wide()), ((Text(name), Text(value)) for name, value in page.about))


def _times(page: Page) -> Table:
    columns = (_narrow(right=True), _narrow(), _wide(), _narrow(right=True), _narrow(right=True))
    rows = ((one.number, one.stage, Bar(one.bar, "cyan"), one.share, one.time) for one in page.times)
    return _table(columns, rows)


def _costs(page: Page) -> Table:
    columns = (_narrow(), *(_narrow(name, right=True) for name in page.costs.header[1:]))
    return _table(columns, page.costs.rows)


def _uses(page: Page) -> Table:
    columns = (_narrow(), _narrow(right=True), _narrow(right=True), _wide(), _wide(2))
    rows = ((one.use, one.labels, one.share, Bar(one.bar, "green"), Text(one.why)) for one in page.uses)
    return _table(columns, rows)


def _memory(page: Page) -> Table:
    columns = (_narrow(), _wide(), _narrow(right=True))
    return _table(columns, (row for one in page.memory for row in _peak(one)))


def _peak(one: Memory) -> Iterator[Sequence[RenderableType]]:
    yield one.stage, Bar(one.bar, "magenta"), one.peak
    yield from (("", Text(note, style="dim"), "") for note in one.notes)


def _stages(page: Page) -> Table:
    stage, *others = page.stages.header
    return _table([_narrow(stage), *(Column(name) for name in others)], page.stages.rows)


def _narrow(name: str = "", *, right: bool = False) -> Column:
    """A column that is never cut."""
    return Column(name, justify="right" if right else "left", no_wrap=True)


def _wide(ratio: int = 1) -> Column:
    """A column that has what the others leave."""
    return Column(ratio=ratio)


def _table(columns: Sequence[Column], rows: Iterable[Sequence[RenderableType]]) -> Table:
    named = any(column.header for column in columns)
    table = Table(*columns, box=None, pad_edge=False, show_header=named, expand=any(column.ratio for column in columns))
    for row in rows:
        table.add_row(*row)
    return table
