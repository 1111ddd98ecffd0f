"""`s2d plan`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from s2d.cli.options import Key, StateDir, Url
from s2d.cli.whatif import Many, Tried, processes, show_table
from s2d.errors import InvalidPlan

if TYPE_CHECKING:
    from s2d.cli.client import Client
    from s2d.plan.document import Plan
    from s2d.plan.machine import Hardware
    from s2d.plan.machines import Machines
    from s2d.plan.models import ModelPolicy
    from s2d.plan.request import DataSummary, PlanRequest
    from s2d.settings import Settings


class Format(StrEnum):
    page = "page"
    markdown = "markdown"
    json = "json"
    csv = "csv"


def plan(
    teacher: Annotated[str | None, typer.Option(help="Hub id or local folder of the model that explores.")] = None,
    student: Annotated[str | None, typer.Option(help="Hub id or local folder of the model to improve.")] = None,
    file: Annotated[
        str | None, typer.Option(help="JSONL file of problems; with --remote the id of an uploaded one.")
    ] = None,
    labels: Annotated[Many, typer.Option(metavar="N", help="Problems with an answer that may be used.")] = None,
    verifier: Annotated[str | None, typer.Option(help="What grades an answer, such as math or exact.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; detected when not given.")] = None,
    devices: Annotated[Many, typer.Option(metavar="N", help="GPUs that train.")] = None,
    gpu: Annotated[Many, typer.Option(metavar="NAME", help="GPU to plan for, such as H100.")] = None,
    memory_gib: Annotated[Many, typer.Option(metavar="GIB", help="Memory of one device, GiB.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of one device for an hour, in your currency.")] = None,
    control: Annotated[
        list[str] | None, typer.Option(help="A control arm, such as direct_grpo; may be given several times.")
    ] = None,
    compute_matched: Annotated[
        bool | None, typer.Option("--compute-matched", help="Controls also go on to equal FLOPs.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Every other seed is derived from it.")] = None,
    evidence: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Pass rates of the pair, from `s2d passrates`.")
    ] = None,
    options: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON object with any field of POST /v1/plans.")
    ] = None,
    out: Annotated[Path | None, typer.Option(dir_okay=False, help="Write the plan here, for `s2d train`.")] = None,
    what_if: Annotated[
        bool,
        typer.Option(
            "--what-if",
            help="A table instead of one plan: --labels, --gpu, --devices and --memory-gib then take several values, "
            "such as 500,1000.",
        ),
    ] = False,
    pair: Annotated[
        Many, typer.Option(metavar="TEACHER,STUDENT", help="Two models to try, with --what-if; several times.")
    ] = None,
    vary: Annotated[
        Many,
        typer.Option(
            metavar="FIELD=VALUES", help="JSON values to try, such as lora=true,false, with --what-if; several times."
        ),
    ] = None,
    format: Annotated[Format, typer.Option(help="How to print it; csv is for --what-if.")] = Format.page,
    remote: Annotated[bool, typer.Option("--remote", help="Let the service make it, for `s2d jobs create`.")] = False,
    url: Url = None,
    key: Key = None,
    state_dir: StateDir = None,
) -> None:
    """Make the staged plan for a pair of models and so many labels. Trains nothing."""
    from s2d.cli.configuration import read_settings

    tried = Tried.read(labels=labels, devices=devices, gpu=gpu, memory_gib=memory_gib, pair=pair, vary=vary)
    tried.check(what_if=what_if, csv=format is Format.csv, out=out is not None)
    hardware = {"device": device, "price_per_hour": price, **tried.machine}
    given: dict[str, Any] = {
        "teacher": teacher,
        "student": student,
        "labeled_budget": tried.labels,
        "verifier": verifier,
        "seed": seed,
    }
    given |= {"controls": control or None, "compute_matched": compute_matched}
    given |= {"evidence": _read_options(evidence) or None}
    fields = _merged(_read_options(options), given | {"training_file": file}, hardware)
    settings = read_settings(state_dir=state_dir)
    if what_if:
        _what_if(settings, fields, tried, format, _service(settings, url, key) if remote else None)
        return
    made = _by_service(_service(settings, url, key), fields) if remote else make_local(settings, fields)
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
    from s2d.plan.request import read_request
    from s2d.plan.service import make_plan

    request = read_request(fields)
    return make_plan(request, *_surroundings(settings, request))


def _surroundings(
    settings: Settings, request: PlanRequest
) -> tuple[DataSummary | None, Hardware, ModelPolicy, Machines]:
    """The file, the machine, where models may come from, and what is known of machines."""
    from s2d.plan.hardware import detect
    from s2d.plan.machines import Machines
    from s2d.plan.models import ModelPolicy
    from s2d.runner.local import summary_of

    data = summary_of(Path(request.training_file)) if request.training_file else None
    # Whoever types here may read their own files anyway; the allowed folders are for those who call the service.
    policy = ModelPolicy(roots=(Path("/"),), allow_hub=settings.allow_hub)
    return data, detect(), policy, Machines.of_state(settings.state_dir)


def _what_if(settings: Settings, fields: dict[str, Any], tried: Tried, format: Format, service: Client | None) -> None:
    from s2d.plan.whatif import WhatIf, read_what_if, what_if

    request = read_what_if(fields, tried.axes(fields.get("hardware", {})))
    if service is None:
        around = _surroundings(settings, request.plan)
        show_table(request, what_if(request, *around, processes=processes(request.count)), format)
        return
    with service:
        answer = service.post("/v1/what-if", request.model_dump(mode="json", exclude_unset=True))
    show_table(request, WhatIf.model_validate(answer).rows, format)


def _service(settings: Settings, url: str | None, key: str | None) -> Client:
    from s2d.cli.client import Client

    return Client.connect(settings, url, key)


def _by_service(service: Client, fields: dict[str, Any]) -> Plan:
    from s2d.plan.document import load_plan

    with service:
        return load_plan(json.dumps(service.post("/v1/plans", fields)))


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
