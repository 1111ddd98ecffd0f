"""`s2d train`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from s2d.cli.options import StateDir
from s2d.errors import InvalidRequest


def train(
    plan: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Plan file of `s2d plan --out`.")],
    file: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="The JSONL file it was made for.")],
    out: Annotated[Path, typer.Option(file_okay=False, help="Folder for models, checkpoints and the report.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the folder.")] = False,
    state_dir: StateDir = None,
) -> None:
    """Run a plan here, without service, broker or database. Ctrl-C saves a checkpoint first; twice stops at once."""
    from s2d.cli import output
    from s2d.cli.configuration import read_settings
    from s2d.cli.outcome import show_end
    from s2d.cli.progress import Progress
    from s2d.cli.report import show_report
    from s2d.plan.document import load_plan
    from s2d.runner.layout import JobLayout
    from s2d.runner.local import run_plan
    from s2d.runner.observed import remember

    found, settings = load_plan(plan.read_bytes()), read_settings(state_dir=state_dir)
    _check_folder(out, resume)
    console = output.console()
    with _stop_on_signal() as stopping, Progress(console, {stage.id: stage.kind for stage in found.stages}) as progress:
        outcome = run_plan(found, file, out, progress.take, stopping=stopping)
    show_end(console, outcome.state, outcome.error)
    if outcome.report is not None:
        show_report(console, outcome.report)
    if outcome.state == "succeeded":
        remember(settings.state_dir, found, JobLayout(out.absolute()))
    if outcome.state == "interrupted":
        typer.echo("It goes on with the same command and --resume.", err=True)
        raise typer.Exit(128 + signal.SIGINT)
    if outcome.state != "succeeded":
        raise typer.Exit(1)


def _check_folder(out: Path, resume: bool) -> None:
    holds_run = (out / "plan.json").exists()
    if holds_run and not resume:
        raise InvalidRequest(f"{out} holds a run: add --resume to go on with it, or choose another folder.")
    if resume and not holds_run:
        raise InvalidRequest(f"{out} holds no run to resume: leave --resume out to start one.")


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Yields whether SIGINT or SIGTERM has come; the second one raises KeyboardInterrupt."""
    seen: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)
        typer.echo("Stopping after a checkpoint; a second Ctrl-C stops at once.", err=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
