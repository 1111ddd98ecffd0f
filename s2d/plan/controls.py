"""The control arms: what each claim of the method is held against.

A control is the stages of the workflow with one thing changed. It shares every stage that comes before the change, and
copies the settings, seeds and thus the prompts and their order of the stage that it stands in for. Where the warmup
goes on until C2 holds, its controls make as many steps as it really made.

| control | what it is |
| --- | --- |
| `direct_grpo` | all training labels on the student directly, as many GRPO steps as the workflow has in all |
| `raw_teacher_bridge` | the bridge from the teacher before stage 1 |
| `opd_only` | no warmup; as many OPD steps as warmup and OPD together |
| `warmup_only` | no OPD; the warmup goes on for as many steps |
| `cold_student_rl` | stage 3 on the base student |
| `replay` | stage 3's steps spent on more OPD: the same number of updates, no label |
| `replay_labels` | stage 3 on the labels that stage 1 has spent already: the same updates, no new label |
| `labeled_bridge` | the bridge on the prompts of stage 1's labels alone |

With `compute_matched` the first four go on until as many FLOPs are behind them as behind what they are compared with
(`<control>_compute`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2d.errors import InvalidPlan
from s2d.plan.defaults import derive_seed
from s2d.plan.document import Grpo, Opd, Select, Stage, TeacherRollouts, Training, Warmup
from s2d.plan.flops import Compute
from s2d.plan.graph import lineage
from s2d.plan.names import Control
from s2d.plan.timing import Lengths

NEED_STAGE_3: tuple[Control, ...] = ("cold_student_rl", "replay", "replay_labels")


Workflow = Mapping[str, Any]
"""The stages of the workflow by their ids."""


def control_stages(control: Control, workflow: Workflow, labels: int) -> tuple[Stage, ...]:
    """The stages of one control, other than `direct_grpo`'s, which are sized on their own.

    Args:
        labels: those of stage 1.

    Raises:
        InvalidPlan: it is a control of stage 3, and the plan has none.
    """
    if control in NEED_STAGE_3 and "student_rl" not in workflow:
        raise InvalidPlan(
            f"The control {control} belongs to stage 3, which this plan does not have: ask for student_rl: true.",
            param="controls",
        )
    match control:
        case "raw_teacher_bridge":
            return tuple(_bridge(workflow, control, "raw", {"teacher": "base_teacher"}))
        case "labeled_bridge":
            return tuple(_labeled_bridge(workflow, control, labels))
        case "opd_only":
            return (_opd_only(workflow),)
        case "warmup_only":
            return (_warmup_only(workflow),)
        case "cold_student_rl":
            why = "Control of stage 3: the same steps on the same held-out labels, on the base student"
            return (_copy(workflow["student_rl"], control, why, starts_from="base_student"),)
        case "replay_labels":
            why = "Control of stage 3: the same steps on labels that stage 1 has spent, so without a new label"
            return (_copy(workflow["student_rl"], control, why, label_roles=("teacher_rl",)),)
        case "replay":
            return (_replay(workflow),)
    raise AssertionError(control)


def candidates(direct: Grpo, rates: Sequence[float]) -> Iterator[Grpo]:
    """Direct GRPO once for each learning rate, each with an account of its own."""
    for number, rate in enumerate(rates, start=1):
        name = f"{direct.id}_{number}"
        optim = direct.optim.model_copy(update={"learning_rate": rate})
        why = f"Candidate {number} for the control: learning rate {rate:g}. {direct.why}"
        yield direct.model_copy(update={"id": name, "arm": name, "trains": name, "optim": optim, "why": why})


def goes_on(compute: Compute, lengths: Lengths, control: Control, reference: str) -> Stage:
    """The control's last training stage once more, until its FLOPs are those behind `reference`.

    The number of steps is an estimate for completions that run to their limit; the job takes what was really spent.
    """
    model = _trained_last(compute.stages, control)
    last = next(stage for stage in compute.stages if isinstance(stage, Training) and stage.trains == model)
    spent, wanted = (expected_behind(compute, lengths, name) for name in (model, reference))
    pace = _expected(compute, lengths, last) / last.steps
    steps = max(1, round((wanted - spent) / pace))
    name = f"{control}_compute"
    why = f"Control, matched in compute: {control} goes on until as many FLOPs are behind it as behind {reference}."
    more = {"id": name, "arm": name, "trains": name, "starts_from": control, "steps": steps, "matches": (), "why": why}
    # It would come to the same prompts in the same order again.
    more["seed"] = derive_seed(last.seed, name)
    if isinstance(last, Warmup):
        more["max_steps"] = steps
    return last.model_copy(update={**more, "compute_of": reference})


def _bridge(workflow: Workflow, control: Control, prefix: str, changes: Mapping[str, Any]) -> Iterator[Stage]:
    """Teacher rollouts, warmup and OPD, with another teacher or other prompts."""
    warmup: Warmup = workflow["warmup"]
    if warmup.optim.schedule != "constant_with_warmup" and warmup.max_steps > warmup.steps:
        raise InvalidPlan(
            f"The control {control} makes as many steps as the warmup really does, and stages.warmup.schedule "
            f"({warmup.optim.schedule}) would end at another rate: use constant_with_warmup, or max_steps = steps.",
            param="stages.warmup.schedule",
        )
    drawn, student = f"{prefix}_rollouts", f"{prefix}_warmup_student"
    yield _copy(workflow["teacher_rollouts"], control, "Control", name=drawn, **changes)
    own: dict[str, Any] = {"trains": student, "rollouts": drawn}
    same: dict[str, Any] = {"matches": ("warmup",), "max_steps": warmup.steps}
    teacher = {name: value for name, value in changes.items() if name == "teacher"}
    why = "Control: as many steps as the warmup really makes"
    yield _copy(warmup, control, why, name=f"{prefix}_warmup", **own, **same, **teacher)
    given = {name: value for name, value in changes.items() if name in ("teacher", "pool")}
    yield _copy(workflow["opd"], control, "Control", name=f"{prefix}_opd", starts_from=student, **given)


def _labeled_bridge(workflow: Workflow, control: Control, labels: int) -> Iterator[Stage]:
    """Fewer prompts have more rollouts each, so that the warmup reads as many."""
    rollouts: TeacherRollouts = workflow["teacher_rollouts"]
    if rollouts.prompts <= labels:
        raise InvalidPlan(
            f"The control {control} needs a bridge with more prompts than stage 1 has labels: it has "
            f"{rollouts.prompts:,}, and there are {labels:,} labels.",
            param="controls",
        )
    samples = max(1, rollouts.prompts * rollouts.samples_per_prompt // labels)
    changes = {"pool": "teacher_rl", "prompts": labels, "samples_per_prompt": samples}
    return _bridge(workflow, control, "labeled", changes)


def _opd_only(workflow: Workflow) -> Opd:
    warmup, opd = workflow["warmup"], workflow["opd"]
    steps = warmup.steps + opd.steps
    stage: Opd = _copy(
        opd,
        "opd_only",
        "Control: no warmup, as many steps as warmup and OPD together",
        starts_from="base_student",
        steps=steps,
        matches=("warmup", "opd"),
    )
    return stage


def _warmup_only(workflow: Workflow) -> Warmup:
    warmup, opd = workflow["warmup"], workflow["opd"]
    stage: Warmup = _copy(
        warmup,
        "warmup_only",
        "Control: no OPD, the warmup goes on for as many steps",
        starts_from="warmup_student",
        steps=opd.steps,
        max_steps=opd.steps,
        matches=("opd",),
        seed=opd.seed,
    )
    return stage


def _replay(workflow: Workflow) -> Opd:
    opd, student_rl = workflow["opd"], workflow["student_rl"]
    stage: Opd = _copy(
        opd,
        "replay",
        "Control of stage 3: as many further steps of OPD, without a label",
        starts_from="opd_student",
        steps=student_rl.steps,
        seed=student_rl.seed,
    )
    return stage


def _copy(stage: Any, control: str, why: str, *, name: str | None = None, **changes: Any) -> Any:
    own = {"id": name or control, "arm": control, "why": f"{why}. {stage.why}"}
    if isinstance(stage, Training):
        own["trains"] = control
    return stage.model_copy(update={**own, **changes})


def _trained_last(stages: Sequence[Stage], control: str) -> str:
    """The model that the control's last steps made: of several candidates, any has made as many."""
    chosen = next((stage for stage in stages if isinstance(stage, Select) and stage.keeps_as == control), None)
    return chosen.candidates[0] if chosen else control


def expected_behind(compute: Compute, lengths: Lengths, model: str) -> float:
    """FLOPs of every stage that the model needs, if all completions are as long as they may be."""
    behind = lineage(compute.stages, model)
    return sum(_expected(compute, lengths, stage) for stage in compute.stages if stage.id in behind)


def _expected(compute: Compute, lengths: Lengths, stage: Stage) -> float:
    return compute.flops(stage, _sequences(stage) * (lengths.prompt + lengths.max_completion))


def _sequences(stage: Stage) -> int:
    """Completions that the stage draws, or reads: each counts once, with its prompt, as in the job."""
    if isinstance(stage, TeacherRollouts):
        return stage.prompts * stage.samples_per_prompt
    if isinstance(stage, Grpo):
        return stage.steps * stage.prompts_per_step * stage.group_size
    return stage.steps * stage.sequences_per_step if isinstance(stage, Warmup | Opd) else 0
