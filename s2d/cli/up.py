"""`s2d up`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from s2d.cli.options import StateDir

if TYPE_CHECKING:
    from rich.console import Console

    from s2d.embedded import EmbeddedService
    from s2d.settings import Settings


def up(
    host: Annotated[str | None, typer.Option(help="Address to listen on [env S2D_HOST; 127.0.0.1].")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one [env S2D_PORT; 8400].")] = None,
    state_dir: StateDir = None,
) -> None:
    """Start the service on this machine: API, worker, broker and student servers. Ctrl-C stops all of it."""
    from rich.console import Console

    from s2d.cli.configuration import read_settings
    from s2d.embedded.ports import is_loopback

    settings = read_settings(host=host, port=port, state_dir=state_dir)
    console = Console(stderr=True, highlight=False)
    if not is_loopback(settings.host):
        console.print(
            f"[yellow]Warning:[/] {settings.host} can be reached from other machines, and HTTP sends the API key in "
            "the clear. Put a proxy with TLS in front, or listen on 127.0.0.1."
        )
    with running_service(settings, console) as service:
        typer.echo(_welcome(service.url, str(service.settings.key_file), str(service.settings.log_dir)))
        service.wait()


@contextmanager
def running_service(settings: Settings, console: Console) -> Iterator[EmbeddedService]:
    """The service from here to the end of `with`; says what it waits for. Raises what EmbeddedService does."""
    from s2d.embedded import EmbeddedService

    service = EmbeddedService(settings, announce=console.print)
    with ExitStack() as stack:
        with console.status("starting the service"):
            stack.enter_context(service)
        try:
            yield service
        finally:
            with console.status("stopping the service; a job that runs is handed back and goes on at the next start"):
                stack.close()


def _welcome(url: str, key_file: str, log_dir: str) -> str:
    curl = f'curl -H "Authorization: Bearer $(cat {key_file})"'
    return "\n".join(
        (
            f"s2d is up at {url}",
            f"  API key   {key_file}",
            f"  logs      {log_dir}",
            f"  try       {curl} {url}/v1/models",
            "  stop      Ctrl-C",
        )
    )
