"""Where output goes, and how lists look."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table

#: Columns where there is no terminal to measure.
PLAIN_WIDTH = 160


def console() -> Console:
    """Standard output."""
    found = Console(highlight=False)
    if not found.is_terminal:
        found.width = PLAIN_WIDTH
    return found


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """One row an item and no frame, so that other programs can cut it up."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # An id that is cut short is no id.
        made.add_column(name, no_wrap=name == "id", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def when(seconds: float | None) -> str:
    """Seconds since the epoch as local time; empty when it has not happened."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S") if seconds else ""
