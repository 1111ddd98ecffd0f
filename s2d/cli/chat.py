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
    console().print(table(("id", "job", "created"), [(m["id"], m["job"], when(m["created"])) for m in found]))


def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question; without it, a conversation.")] = None,
    model: Annotated[str | None, typer.Option(help="Id of a student; the newest when not given.")] = None,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Ask a student. The first question starts its server, which takes some seconds."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        name = model or newest_student(client)
        if prompt is not None:
            _answer(client, name, [{"role": "user", "content": prompt}])
            return
        typer.echo(f"Talking to {name}. An empty line or Ctrl-D ends it.", err=True)
        _converse(client, name)


def newest_student(client: Client) -> str:
    """Raises NotFound."""
    from s2d.errors import NotFound

    found = client.get("/v1/models")["data"]
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
