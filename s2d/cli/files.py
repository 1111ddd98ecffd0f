"""`s2d files`: training files on the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from s2d.cli.options import Key, StateDir, Url

app = typer.Typer(help="Training files on the service.", no_args_is_help=True)


@app.command()
def upload(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSONL: problems, with answers or without.")
    ],
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Upload labels and say what was read; prints the file's id."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        found = client.upload(file)
    report = found["report"]
    counts = f"{report['labeled']} labeled, {report['unlabeled']} unlabeled"
    typer.echo(f"{counts}, {report['duplicates']} duplicates, {report['rejected']} rejected", err=True)
    for rejection in report["rejections"][:5]:
        typer.echo(f"  line {rejection['line']}: {rejection['reason']}", err=True)
    typer.echo(found["id"])


@app.command("list")
def list_files(url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """The newest files."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings
    from s2d.cli.output import console, table, when

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        files = client.get("/v1/files")["data"]
    rows = [
        (f["id"], f["filename"], str(f["report"]["labeled"]), str(f["report"]["unlabeled"]), when(f["created_at"]))
        for f in files
    ]
    console().print(table(("id", "name", "labeled", "unlabeled", "created"), rows))
