"""All commands, and how an error ends one: a line that says what to do, and the exit code.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from s2d.cli import chat, demo, files, jobs, keys, passrates, plan, probe, train, up
from s2d.errors import S2DError

EXIT_FAILED = 1
EXIT_INTERRUPTED = 128 + signal.SIGINT

app = typer.Typer(
    name="s2d",
    help="Sparse-to-dense post-training: spend labels on the teacher, distill into the student.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command("up")(up.up)
app.command("plan")(plan.plan)
app.command("probe")(probe.probe)
app.command("passrates")(passrates.passrates)
app.command("train")(train.train)
app.add_typer(jobs.app, name="jobs")
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.command("models")(chat.models)
app.command("chat")(chat.chat)
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        from s2d import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


def run() -> NoReturn:
    """Run the command line; never a traceback for what a user or the machine can cause."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        app(prog_name="s2d")
    except S2DError as err:
        _fail(err.message)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except OSError as err:
        _fail(f"{err.filename}: {err.strerror}" if err.filename else str(err))
    sys.exit(0)


def _fail(message: str) -> NoReturn:
    typer.echo(f"Error: {message}", err=True)
    sys.exit(EXIT_FAILED)


def _end(number: int, _: FrameType | None) -> NoReturn:
    # An exception, so that every `with` on the way out stops what it started.
    sys.exit(128 + number)
