"""`s2d keys`: who may use the service, and for what."""

from __future__ import annotations

from typing import Annotated

import typer

from s2d.cli.options import Key, StateDir, Url

app = typer.Typer(help="API keys of the service; needs an admin key.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="For people.")],
    scope: Annotated[list[str], typer.Option(help="read, train, infer or admin; give it again for another one.")],
    tenant: Annotated[str, typer.Option(help="Whose files, plans, jobs and students it sees.")] = "default",
    requests_per_min: Annotated[int | None, typer.Option(help="Most requests in a minute.")] = None,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Make a key; prints its secret, which is shown this once."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    wanted = {"name": name, "tenant": tenant, "scopes": scope, "requests_per_min": requests_per_min}
    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        made = client.post("/v1/keys", wanted)
    typer.echo(f"{made['id']}: {' '.join(made['scopes'])}, tenant {made['tenant']}. Keep the secret; it is:", err=True)
    typer.echo(made["secret"])


@app.command("list")
def list_keys(url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """The keys of every tenant, newest first."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings
    from s2d.cli.output import console, table, when

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        found = client.every("/v1/keys")
    rows = [
        (k["id"], k["name"], k["tenant"], " ".join(k["scopes"]), str(k["requests_per_min"] or "no limit"),
         when(k["created_at"]), when(k["revoked_at"]) if k["revoked_at"] else "")
        for k in found
    ]  # fmt: skip
    console().print(table(("id", "name", "tenant", "scopes", "per min", "created", "revoked"), rows))


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="See `s2d keys list`.")],
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Revoke a key for good."""
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    with Client.connect(read_settings(state_dir=state_dir), url, key) as client:
        client.delete(f"/v1/keys/{key_id}")
    typer.echo(f"{key_id} opens nothing any more.")
