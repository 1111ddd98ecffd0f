"""`s2d demo`: the main job through the real service, from labels to an answer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from s2d.cli.client import Client
    from s2d.demo.task import Problem
    from s2d.plan.document import Plan


def demo(
    state_dir: Annotated[
        Path, typer.Option("--state-dir", help="Folder for everything that the demo makes.", metavar="DIR")
    ] = Path("s2d-demo"),
    seed: Annotated[int, typer.Option(min=0, help="Of the problems and of the plan.")] = 0,
    port: Annotated[int, typer.Option(help="Port of the service; 0 takes a free one.")] = 0,
) -> None:
    """A tiny model pair learns arithmetic through all stages, in minutes on two cores; then its student answers."""
    from s2d.cli import output
    from s2d.cli.client import Client
    from s2d.cli.configuration import read_settings
    from s2d.cli.up import running_service

    console = output.console()
    settings = read_settings(state_dir=state_dir, port=port, host="127.0.0.1")
    models = settings.state_dir.absolute() / "models"
    place_models(models)
    file, question = write_problems(settings.state_dir, seed)
    with running_service(settings, console) as service:
        console.print(
            f"The service is up at {service.url}; its logs are in {service.settings.log_dir}.", soft_wrap=True
        )
        with Client.connect(service.settings, service.url, None) as client:
            job = _run(client, console, file, models, seed, service.check)
            if job["state"] == "succeeded":
                _show_report(console, service.settings.job_dir(job["id"]))
                _ask(client, console, job["student"], question)
    if job["state"] != "succeeded":
        raise typer.Exit(1)


def place_models(folder: Path) -> None:
    """Copy the pair to where the service may read models."""
    import shutil

    from s2d.demo.settings import ASSETS

    for name in ("teacher", "student"):
        shutil.copytree(ASSETS / name, folder / f"demo-{name}", dirs_exist_ok=True)


def write_problems(folder: Path, seed: int) -> tuple[Path, Problem]:
    """The file to upload, and one more problem, which is in it neither with nor without its answer."""
    from s2d.demo import task
    from s2d.demo.settings import LABELS, UNLABELED_PROMPTS

    file, n_labeled = folder / "arithmetic.jsonl", sum(LABELS.values())
    task.write_jsonl(file, n_labeled, UNLABELED_PROMPTS, seed)
    known = {problem.text for problem in task.problems(n_labeled + UNLABELED_PROMPTS, seed)}
    return file, task.problems(1, seed + 1, exclude=known)[0]


def _run(client: Client, console: Console, file: Path, models: Path, seed: int, alive: Any) -> dict[str, Any]:
    from s2d.cli.jobs import follow
    from s2d.demo.settings import OPTIONS
    from s2d.plan.document import Plan

    _drop_unfinished(client)
    uploaded = client.upload(file)
    counts = uploaded["report"]
    console.print(f"Uploaded {counts['labeled']:,} labeled and {counts['unlabeled']:,} unlabeled problems.")
    pair = {name: str(models / f"demo-{name}") for name in ("teacher", "student")}
    plan = client.post("/v1/plans", {**pair, "training_file": uploaded["id"], "seed": seed, **OPTIONS})
    _show_plan(console, Plan.model_validate(plan), file.with_name("plan.md"))
    job = client.post("/v1/jobs", {"plan": plan["id"], "training_file": uploaded["id"], "name": "demo"})
    console.print(f"Job {job['id']} is {job['state']}.")
    return follow(client, job["id"], console, alive)


def _drop_unfinished(client: Client) -> None:
    """Cancel what a demo that was stopped has left: it would go on before this one."""
    for state in ("queued", "running"):
        for job in client.get("/v1/jobs", state=state)["data"]:
            client.post(f"/v1/jobs/{job['id']}/cancel")


def _show_plan(console: Console, plan: Plan, page: Path) -> None:
    """What a person must know before the start; the whole page goes into a file."""
    from s2d.plan.render import to_markdown

    page.write_text(to_markdown(plan))
    labels, stages = plan.data.labels, plan.stages
    low, high = (sum(getattr(stage.estimate.seconds, end) for stage in stages) / 60 for end in ("low", "high"))
    console.print(
        f"Plan {plan.id}: {labels.teacher_rl:,} labels for the teacher, {labels.student_rl:,} held out for the "
        f"student, {labels.validation:,} for the gates, {labels.test:,} for the test; "
        f"{plan.data.bridge_prompts:,} prompts for the bridge.\n  {' → '.join(stage.id for stage in stages)}\n"
        f"  {low:.1f} to {high:.1f} minutes by an uncalibrated estimate. The whole plan: {page}"
    )


def _show_report(console: Console, job_dir: Path) -> None:
    from s2d.cli.report import show_report

    show_report(console, job_dir / "report" / "report.json")


def _ask(client: Client, console: Console, student: str, question: Problem) -> None:
    from rich.text import Text

    with console.status(f"starting the server of {student}"):
        body = {
            "model": student,
            "messages": [{"role": "user", "content": question.text}],
            "temperature": 0,
            "max_tokens": 32,
        }
        answer = "".join(client.chat(body))
    console.print(Text(f"POST /v1/chat/completions, model {student}, a problem that no stage has seen:"))
    console.print(Text(f"  question     {question.text}  (left to right, modulo 10)"))
    console.print(Text(f"  answer       {answer}"))
    console.print(Text(f"  true answer  {question.answer}"))
