"""`s2d models` and `s2d chat`: ask the students."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from s2d.cli.options import Key, StateDir, Url

if TYPE_CHECKING:
    from s2d.cli.client import Client


def models(url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """The students of the service, newest first."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings
    from s2d.cli.output import console, table, when

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        found = client.get("/v1/models")["data"]
    rows = [(m["id"], m["arm"], m["job"], when(m["created"])) for m in found]
    console().print(table(("id", "arm", "job", "created"), rows))


def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Id of a student, or with --compare of a job; the newest when not given.")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Ask every arm of the job, side by side.")] = False,
    row: Annotated[
        str | None,
        typer.Option(metavar="LINE", help="With --compare: a row of the job's file, by line or id, graded if labeled."),
    ] = None,
    arm: Annotated[
        list[str] | None, typer.Option(help="With --compare: only this arm, such as base; may be repeated.")
    ] = None,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Ask a student. The first question starts its server, which takes some seconds."""
    from s2d.cli import compare as arms
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    if (row is not None or arm) and not compare:
        raise typer.BadParameter("--row and --arm go with --compare.")
    if row is not None and prompt is not None:
        raise typer.BadParameter("--row is a question of its own: leave the other one out.")
    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        name = model or newest_student(client)
        if compare:
            arms.compare(client, arms.job_of(client, name), arm or (), prompt, row)
            return
        if prompt is not None:
            _answer(client, name, [{"role": "user", "content": prompt}])
            return
        typer.echo(f"Talking to {name}. An empty line or Ctrl-D ends it.", err=True)
        _converse(client, name)


def newest_student(client: Client) -> str:
    """What a workflow has made last; not one of its controls. Raises NotFound."""
    from s2d.errors import NotFound

    found = [student for student in client.get("/v1/models")["data"] if student["arm"] == "workflow"]
    if not found:
        raise NotFound("There is no student yet: one is registered when a job succeeds (`s2d jobs create`).")
    return str(found[0]["id"])


def _converse(client: Client, model: str) -> None:
    messages: list[dict[str, str]] = []
    while True:
        try:
            said = input("> ").strip()
        except EOFError:
            return
        if not said:
            return
        messages.append({"role": "user", "content": said})
        messages.append({"role": "assistant", "content": _answer(client, model, messages)})


def _answer(client: Client, model: str, messages: list[dict[str, str]]) -> str:
    pieces = []
    for piece in client.chat({"model": model, "messages": messages}):
        typer.echo(piece, nl=False)
        pieces.append(piece)
    typer.echo()
    return "".join(pieces)
