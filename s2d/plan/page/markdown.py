"""The page as Markdown, for files and the API."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from s2d.plan.page.facts import Memory, Page, Time, Use

#: Cells of a bar.
WIDTH = 24


def lay_out(page: Page) -> str:
    """The whole page."""
    parts = [f"# Plan `{page.id}`", page.answer, _list(f"{name}: {value}" for name, value in page.about)]
    for title, body in _sections(page):
        parts += [f"## {title}", *body]
    return "\n\n".join(parts) + "\n"


def _sections(page: Page) -> Iterator[tuple[str, Sequence[str]]]:
    times = ((one.number, one.stage, _bar(one), one.share, one.time) for one in page.times)
    yield "Timeline", (_table(("#", "stage", "", "share", "time"), times),)
    yield "Cost", (_table(*page.costs), page.price)
    uses = ((one.use, one.labels, one.share, _bar(one), one.why) for one in page.uses)
    yield "Labels", (_table(("use", "labels", "share", "", "why"), uses),)
    if page.advice:
        yield "Advice", (_list(page.advice),)
    memory = ((one.stage, _bar(one), one.peak, "; ".join(one.notes)) for one in page.memory)
    yield "Memory of a device, GiB", (_table(("stage", "", "peak", "of it"), memory), page.legend)
    yield "Stages", (_table(*page.stages),)
    yield "Gates", (_list(page.gates),)
    if page.warnings:
        yield "Warnings", (_list(page.warnings),)
    yield "Why", (_list(f"**{stage}**: {why}" for stage, why in page.whys),)


def _bar(one: Time | Use | Memory) -> str:
    return f"`{one.bar(WIDTH)}`"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
