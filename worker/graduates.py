"""What a succeeded job leaves to be asked: the student of each arm, and the base student that they started from.

Promises: a folder that is named here held weights when it was looked at. Does not promise that the API's host sees it:
the job's folder must be shared, and a base student from the hub lies in the cache of the worker's host.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

from s2d.atomic import replace_folder
from s2d.events import NewEvent
from s2d.plan.document import Plan, load_plan
from s2d.plan.graph import BASE, WORKFLOW, products
from s2d.plan.models import weights_folder
from s2d.plan.prompting import Prompting
from s2d.rollouts.prompting import prompted_once
from s2d.runner.layout import JobLayout

TEMPLATE_FILE = "chat_template.jinja"


class Graduate(NamedTuple):
    """An arm of the job, and the folder of the model that it ended with."""

    arm: str
    path: Path


def graduates(layout: JobLayout) -> tuple[list[Graduate], list[NewEvent]]:
    """Base, controls and, last and in any case, the workflow; and what to say of those that cannot be asked."""
    plan = load_plan(layout.plan.read_text())
    found, remarks = [], []
    try:
        found.append(Graduate(BASE, _base(plan, layout)))
    except (OSError, ValueError, LookupError) as err:
        remarks.append(_remark(BASE, str(err)))
    models = products(plan.stages)
    for arm, model in models.items():
        folder = layout.model(model)
        if arm == WORKFLOW:
            continue
        if any(folder.glob("*.safetensors")):
            found.append(Graduate(arm, folder))
        else:
            remarks.append(_remark(arm, f"there are no weights in {folder}"))
    return [*found, Graduate(WORKFLOW, layout.model(models[WORKFLOW]))], remarks


def _remark(arm: str, reason: str) -> NewEvent:
    message = f"The student of the arm {arm} cannot be asked or compared: {reason}."
    return NewEvent(type="message", level="warn", message=message, data={"arm": arm})


def _base(plan: Plan, layout: JobLayout) -> Path:
    """The base student as the job's prompts asked it. Raises OSError where its files are not here."""
    folder = weights_folder(plan.student)
    if folder is None:
        raise FileNotFoundError(f"no safetensors of {plan.student.name} are on this machine")
    if plan.prompt == Prompting():
        return folder
    template = _template(folder)
    told = prompted_once(template, plan.prompt)
    # An earlier job's student has the additions already.
    return folder if told == template else _linked(folder, told, layout.model("base_student"))


def _template(folder: Path) -> str:
    file = folder / TEMPLATE_FILE
    if file.is_file():
        return file.read_text(encoding="utf-8")
    return str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"])


def _linked(source: Path, template: str, target: Path) -> Path:
    """A model of the same files with this chat template: servers prefer a file to the tokenizer's config."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != TEMPLATE_FILE:
            (partial / path.name).symlink_to(path.resolve())
    (partial / TEMPLATE_FILE).write_text(template, encoding="utf-8")
    replace_folder(partial, target)
    return target
