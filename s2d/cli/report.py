"""The report of a job for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2d.report.document import ArmResult, Report, StageSummary


def show_report(console: Console, path: Path) -> None:
    """The arms with accuracy, labels and time, how they compare, the stages, and where the whole report lies."""
    report = Report.model_validate_json(path.read_bytes())
    if report.arms:
        console.print(_arms(report.arms))
    names = {arm.model: arm.label for arm in report.arms}
    for found in report.comparisons:
        gain = f"{found.gain:+.1%} ({found.low:+.1%} to {found.high:+.1%})"
        console.print(Text(f"  {names[found.arm]} against {names[found.baseline]}: {gain}"), soft_wrap=True)
    console.print(_stages(report.stages))
    console.print(Text(f"report: {path}"), soft_wrap=True)


def _arms(arms: Sequence[ArmResult]) -> Table:
    first = arms[0]
    title = f"Accuracy on {first.problems:,} held-out problems (avg@{first.k}, 95 % interval)"
    made = _table(title, "model", "accuracy", "interval", "labels used", "seconds")
    for arm in arms:
        interval = f"{arm.low:.1%} to {arm.high:.1%}"
        made.add_row(arm.label, f"{arm.avg_at_k:.1%}", interval, f"{arm.labels_used:,}", f"{arm.seconds:,.0f}")
    return made


def _stages(stages: Sequence[StageSummary]) -> Table:
    made = _table("Stages", "stage", "steps", "tokens", "seconds")
    for stage in stages:
        made.add_row(stage.id, f"{stage.steps:,}", f"{stage.tokens:,}", f"{stage.seconds:,.0f}")
    return made


def _table(title: str, first: str, *numbers: str) -> Table:
    made = Table(title=title, title_justify="left")
    made.add_column(first)
    for name in numbers:
        made.add_column(name, justify="right")
    return made
