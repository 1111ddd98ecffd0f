"""The report of a job as a table for the terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_report(console: Console, path: Path) -> None:
    """The arms with their accuracy, labels and time, the stages, and where the whole report lies."""
    report = json.loads(path.read_text())
    console.print(_arms(report["arms"]))
    console.print(_stages(report["stages"]))
    console.print(Text(f"report: {path}"), soft_wrap=True)


def _arms(arms: list[Mapping[str, Any]]) -> Table:
    k, problems = (arms[0]["k"], arms[0]["problems"]) if arms else (0, 0)
    made = Table(title=f"Accuracy on {problems:,} held-out problems, avg@{k}", title_justify="left")
    for name, justify in (("model", "left"), ("accuracy", "right"), ("95 % interval", "right")):
        made.add_column(name, justify=justify)  # type: ignore[arg-type]
    made.add_column("labels used", justify="right")
    made.add_column("seconds", justify="right")
    for arm in arms:
        interval = f"{arm['low']:.1%} – {arm['high']:.1%}"
        made.add_row(
            arm["label"], f"{arm['avg_at_k']:.1%}", interval, f"{arm['labels_used']:,}", f"{arm['seconds']:.0f}"
        )
    return made


def _stages(stages: list[Mapping[str, Any]]) -> Table:
    made = Table("stage", title="Stages", title_justify="left")
    for name in ("steps", "tokens", "seconds"):
        made.add_column(name, justify="right")
    for stage in stages:
        made.add_row(stage["kind"], f"{stage['steps']:,}", f"{stage['tokens']:,}", f"{stage['seconds']:.0f}")
    return made
