"""How lists are shown: one row an item, no frame, so that they can be cut up by other programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.table import Table


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
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
