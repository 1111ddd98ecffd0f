"""Live progress of a job: moving lines on a terminal, plain ones elsewhere. Neither ever stands still for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from s2d.cli.board import Board, Row
from s2d.events import NewEvent

REFRESH_PER_S = 8
#: Without a terminal, a line at least this often while the job goes on.
PLAIN_LINE_S = 5.0
BAR_WIDTH = 28
MARKS = {"waiting": Text(" ·", "dim"), "succeeded": Text(" ✓", "green"), "failed": Text(" ✗", "red")}


class Progress:
    """Shows the events that `take` is given, between entering and leaving. `take` may be called from one thread."""

    def __init__(self, console: Console, kinds: Mapping[str, str] | None = None) -> None:
        self.board = Board.of(kinds or {})
        self._console = console
        self._lock = threading.Lock()
        # Two, because a spinner cannot lose its text again.
        self._spinner, self._waiting = Spinner("dots"), Spinner("dots")
        self._live = Live(
            get_renderable=self._render, console=console, refresh_per_second=REFRESH_PER_S, vertical_overflow="visible"
        )
        self._printed_at = time.monotonic()
        self._leaving = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        else:
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._live.stop()
        else:
            self._leaving.set()
            self._ticker.join()

    def take(self, event: Mapping[str, Any] | NewEvent) -> None:
        """An event of the job, as the API sends it or as a local run makes it."""
        fields = event.model_dump() if isinstance(event, NewEvent) else event
        with self._lock:
            line = self.board.take(fields)
            row = self.board.rows.get(fields["stage"] or "")
        if line is not None:
            self._print(line)
        elif fields["type"] == "stage" and row is not None and not self._console.is_terminal:
            self._print(row.line())

    def _print(self, line: str) -> None:
        style = {"warning": "yellow", "error": "red"}.get(line.split(":")[0])
        self._console.print(Text(line, style or ""), soft_wrap=True)
        self._printed_at = time.monotonic()

    def _tick(self) -> None:
        while not self._leaving.wait(0.2):
            if time.monotonic() < self._printed_at + PLAIN_LINE_S:
                continue
            with self._lock:
                row = self.board.running
                line = row.line() if row else f"job {self.board.state}"
            self._print(line)

    def _render(self) -> RenderableType:
        with self._lock:
            rows = list(self.board.rows.values())
            if self.board.running is not None:
                return self._table(rows)
            self._waiting.update(text=f"job {self.board.state}")
            return Group(self._table(rows), self._waiting)

    def _table(self, rows: list[Row]) -> Table:
        table = Table.grid(padding=(0, 2))
        for row in rows:
            mark = self._spinner if row.state == "running" else MARKS[row.state]
            elapsed = f"{row.elapsed:.0f} s" if row.elapsed is not None else ""
            table.add_row(mark, row.name, _bar(row), row.count, Text(elapsed, "dim"), row.told)
        return table


def _bar(row: Row) -> ProgressBar:
    if row.state == "running" and not row.steps:
        return ProgressBar(width=BAR_WIDTH, pulse=True)
    if row.state == "succeeded":
        return ProgressBar(total=1, completed=1, width=BAR_WIDTH)
    return ProgressBar(total=row.steps or 1, completed=row.step or 0, width=BAR_WIDTH)
