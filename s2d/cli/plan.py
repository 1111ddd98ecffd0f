"""`s2d plan`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2d.cli.options import Key, StateDir, Url
from s2d.errors import InvalidPlan

if TYPE_CHECKING:
    from s2d.plan.document import Plan
    from s2d.settings import Settings


class Format(StrEnum):
    page = "page"
    markdown = "markdown"
    json = "json"


def plan(
    teacher: Annotated[str | None, typer.Option(help="Hub id or local folder of the model that explores.")] = None,
    student: Annotated[str | None, typer.Option(help="Hub id or local folder of the model to improve.")] = None,
    file: Annotated[
        str | None, typer.Option(help="JSONL file of problems; with --remote the id of an uploaded one.")
    ] = None,
    labels: Annotated[int | None, typer.Option(min=1, help="Problems with an answer that may be used.")] = None,
    verifier: Annotated[str | None, typer.Option(help="What grades an answer, such as math or exact.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; detected when not given.")] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="GPUs that train.")] = None,
    gpu: Annotated[str | None, typer.Option(help="GPU to plan for, such as H100.")] = None,
    memory_gib: Annotated[float | None, typer.Option(help="Memory of one device, GiB.")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="A control arm, such as direct_grpo; may be given several times.")
    ] = None,
    compute_matched: Annotated[
        bool | None, typer.Option("--compute-matched", help="Controls also go on to equal FLOPs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Every other seed is derived from it.")] = None,
    options: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON object with any field of POST /v1/plans.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the plan here, for `s2d train`.")] = None,
    format: Annotated[Format, typer.Option(help="How to print it.")] = Format.page,
    remote: Annotated[bool, typer.Option("--remote", help="Let the service make it, for `s2d jobs create`.")] = False,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Make the staged plan for a pair of models and so many labels. Trains nothing."""
    from s2d.cli.configuration import read_settings

    hardware = {"device": device, "devices": devices, "name": gpu, "memory_gib": memory_gib}
    given: dict[str, Any] = {
        "teacher": teacher,
        "student": student,
        "labeled_budget": labels,
        "verifier": verifier,
        "seed": seed,
    }
    given |= {"controls": control or None, "compute_matched": compute_matched}
    fields = _merged(_read_options(options), given | {"training_file": file}, hardware)
    settings = read_settings(state_dir=state_dir)
    made = _by_service(settings, url, key, fields) if remote else make_local(settings, fields)
    if out is not None:
        out.write_text(made.model_dump_json(indent=2) + "\n")
    show(made, format)


def show(plan: Plan, format: Format) -> None:
    """Print the plan."""
    from s2d.cli.output import console
    from s2d.plan.render import to_markdown, to_rich

    if format is Format.page:
        console().print(to_rich(plan))
    else:
        typer.echo(to_markdown(plan) if format is Format.markdown else plan.model_dump_json(indent=2))


def make_local(settings: Settings, fields: dict[str, Any]) -> Plan:
    """A plan without a service; `training_file` is a path, and a local model may lie anywhere.

    Raises:
        InvalidData, InvalidPlan, IncompatiblePair, ModelRefused.
    """
    from s2d.plan.hardware import detect
    from s2d.plan.models import ModelPolicy
    from s2d.plan.request import read_request
    from s2d.plan.service import make_plan
    from s2d.runner.local import summary_of

    request = read_request(fields)
    data = summary_of(Path(request.training_file)) if request.training_file else None
    # Whoever types here may read their own files anyway; the allowed folders are for those who call the service.
    policy = ModelPolicy(roots=(Path("/"),), allow_hub=settings.allow_hub)
    return make_plan(request, data, detect(), policy)


def _by_service(settings: Settings, url: str | None, key: str | None, fields: dict[str, Any]) -> Plan:
    from s2d.cli.client import Client
    from s2d.plan.document import load_plan

    with Client.connect(settings, url, key) as client:
        return load_plan(json.dumps(client.post("/v1/plans", fields)))


def _merged(options: dict[str, Any], given: dict[str, Any], hardware: dict[str, Any]) -> dict[str, Any]:
    """The command line wins over the options file."""
    machine = options.get("hardware", {}) | {name: value for name, value in hardware.items() if value is not None}
    fields = options | {name: value for name, value in given.items() if value is not None}
    return fields | ({"hardware": machine} if machine else {})


def _read_options(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        options = json.loads(path.read_bytes())
    except ValueError as err:
        raise InvalidPlan(f"{path} is not valid JSON: {err}") from err
    if not isinstance(options, dict) or not isinstance(options.get("hardware", {}), dict):
        raise InvalidPlan(f"{path} must hold a JSON object with fields of POST /v1/plans.")
    return options
