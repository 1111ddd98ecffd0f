"""Numbers and bars as people read them. Every number has its unit, every estimate its range."""

from __future__ import annotations

from s2d.plan.document import Range

FULL, MAYBE, EMPTY, LINE = "█", "▒", "·", "┃"


def between(value: Range, unit: str = "") -> str:
    """`1.0 to 2.5 GiB`; one number where both ends read the same."""
    return f"{_ends(value, 1)} {unit}".rstrip()


def money(value: Range) -> str:
    """`0.85 to 12.40`; the currency is the user's."""
    return _ends(value, 2)


def number(value: float, decimals: int = 1) -> str:
    """`72.7`, `80`: no more decimals than it has."""
    told = f"{value:,.{decimals}f}"
    return told.rstrip("0").rstrip(".") if "." in told else told


def percent(share: float) -> str:
    """`<1%` for what is little but there."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"


def _ends(value: Range, decimals: int) -> str:
    """Both ends; as hundreds have no decimals here, tens beside them have none."""
    plain = value.high >= 99.95
    high = f"{value.high:,.{0 if plain else decimals}f}"
    low = f"{value.low:,.{0 if plain and value.low >= 10 else decimals}f}"
    return low if low == high else f"{low} to {high}"


def duration(seconds: Range) -> str:
    """In the unit in which the upper end is at least 2."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds.high >= 2 * size:
            return between(scaled(seconds, 1 / size), unit)
    return between(seconds, "s")


def scaled(value: Range, factor: float) -> Range:
    return Range(low=value.low * factor, high=value.high * factor)


def count(value: int) -> str:
    """Parameters: 8.2B, 57.1k."""
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def span_bar(start: float, end: float, width: int) -> str:
    """A bar from `start` to `end`, shares of `width` cells; never too short to be seen."""
    first = min(width - 1, round(start * width))
    last = max(first + 1, round(end * width))
    return EMPTY * first + FULL * (last - first) + EMPTY * (width - last)


def level_bar(low: float, high: float, line: float, width: int) -> str:
    """A bar that is full up to `low` and maybe full up to `high`, with a line; shares of `width` cells."""
    full, maybe = round(low * width), round(high * width)
    cells = [FULL if i < full else MAYBE if i < maybe else EMPTY for i in range(width)]
    cells[min(width - 1, int(line * width))] = LINE
    return "".join(cells)
