"""`s2d jobs`: jobs on the service."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2d.cli.options import Key, StateDir, Url

if TYPE_CHECKING:
    from rich.console import Console

    from s2d.cli.client import Client

app = typer.Typer(help="Jobs on the service.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")]


@app.command()
def create(
    plan: Annotated[str, typer.Option(help="Id of a plan of the service (`s2d plan --remote`).", metavar="PLAN_ID")],
    file: Annotated[str, typer.Option(help="Id of a file of the service (`s2d files upload`).", metavar="FILE_ID")],
    name: Annotated[str | None, typer.Option(help="For people.")] = None,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Queue a job; prints its id."""
    with _connect(url, key, state_dir) as client:
        job = client.post("/v1/jobs", {"plan": plan, "training_file": file, "name": name})
    typer.echo(job["id"])


@app.command("list")
def list_jobs(
    state: Annotated[str | None, typer.Option(help="Only jobs in this state.")] = None,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """The newest jobs."""
    from s2d.cli.output import console, table, when

    with _connect(url, key, state_dir) as client:
        jobs = client.get("/v1/jobs", state=state)["data"]
    rows = [(j["id"], j["name"] or "", j["state"], _position(j), when(j["created_at"])) for j in jobs]
    console().print(table(("id", "name", "state", "stage", "created"), rows))


@app.command()
def show(job_id: JobId, url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """One job, as the service describes it (JSON)."""
    with _connect(url, key, state_dir) as client:
        typer.echo(json.dumps(client.get(f"/v1/jobs/{job_id}"), indent=2))


@app.command()
def events(
    job_id: JobId,
    after: Annotated[int, typer.Option(min=0, help="Only events with a greater number.")] = 0,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """The events so far, one JSON object a line."""
    with _connect(url, key, state_dir) as client:
        more = True
        while more:
            page = client.get(f"/v1/jobs/{job_id}/events", after=after, limit=1000)
            for event in page["data"]:
                typer.echo(json.dumps(event))
                after = event["seq"]
            more = page["has_more"]


@app.command()
def watch(job_id: JobId, url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """Live progress until the job ends. Ctrl-C stops watching, not the job. Exit code 0 if the job succeeds."""
    from s2d.cli.output import console

    with _connect(url, key, state_dir) as client:
        job = follow(client, job_id, console())
    if job["state"] != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(job_id: JobId, url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """Cancel a job: at once while it waits, else as soon as its worker has stopped."""
    with _connect(url, key, state_dir) as client:
        typer.echo(client.post(f"/v1/jobs/{job_id}/cancel")["state"])


@app.command()
def pause(job_id: JobId, url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """Hold a job: at once while it waits, else as soon as its stage has saved a checkpoint."""
    with _connect(url, key, state_dir) as client:
        typer.echo(client.post(f"/v1/jobs/{job_id}/pause")["state"])


@app.command()
def resume(job_id: JobId, url: Url = None, key: Key = None, state_dir: StateDir = None) -> None:
    """Let a paused, failed or cancelled job go on from its last whole checkpoint."""
    with _connect(url, key, state_dir) as client:
        typer.echo(client.post(f"/v1/jobs/{job_id}/resume")["state"])


def follow(client: Client, job_id: str, screen: Console, alive: Any = lambda: None) -> dict[str, Any]:
    """Show a job's progress until it ends, then how it ended; the job. `alive` is called now and then and may raise."""
    from s2d.cli.outcome import show_end
    from s2d.cli.progress import Progress

    plan = client.get(f"/v1/plans/{client.get(f'/v1/jobs/{job_id}')['plan']}")
    with Progress(screen, {stage["id"]: stage["kind"] for stage in plan["stages"]}) as progress:
        for event in client.events(job_id):
            alive()
            if event is not None:
                progress.take(event)
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}")
    show_end(screen, job["state"], job["error"])
    return job


def _connect(url: str | None, key: str | None, state_dir: Any) -> Client:
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings

    return Client.connect(read_settings(state_dir=state_dir), url, key)


def _position(job: dict[str, Any]) -> str:
    return f"{job['current_stage']} {job['step']}/{job['steps']}" if job["current_stage"] else ""
