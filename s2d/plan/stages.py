"""The stages of a plan, in the order in which a job runs them, each with its numbers and the reason for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from typing import Any, Literal

from s2d.errors import InvalidPlan
from s2d.plan import defaults
from s2d.plan.controls import Workflow, candidates, control_stages, goes_on
from s2d.plan.document import Estimate, Evaluate, Grpo, Model, Opd, Sampling, Select, Stage, TeacherRollouts, Warmup
from s2d.plan.flops import Compute
from s2d.plan.graph import WORKFLOW, made_by
from s2d.plan.memory import Work, dtype_for
from s2d.plan.names import Control, StageKind
from s2d.plan.overrides import COMPUTE_MATCHED, GrpoOverrides, Overrides
from s2d.plan.sizing import Drawing, generation_batch, told
from s2d.plan.training import LATER, Rows, Setting, choose_step, common, sampling, why_fit
from s2d.plan.work import Ground, timed

_BRIDGE_FIELDS = ("token_share", "prefix_share", "score_once", "extrapolate")
_GRPO_FIELDS = ("epsilon", "epsilon_high", "beta", "scale_rewards", "loss_type")


def build_stages(setting: Setting) -> tuple[Stage, ...]:
    """All stages.

    Raises:
        InvalidPlan: a setting that is impossible, or a stage that fits on no device.
    """
    ground = Ground(
        setting.teacher,
        setting.student,
        setting.hardware,
        setting.gates,
        setting.labels,
        setting.lengths,
    )
    return timed(ground, tuple(_stages(setting)))


def _stages(setting: Setting) -> Iterator[Stage]:
    labels, request = setting.labels, setting.request
    if request.stages.student_rl is not None and not labels.student_rl:
        raise InvalidPlan(
            "stages.student_rl is set, but stage 3 has no labels: ask for student_rl: true.", param="stages.student_rl"
        )
    rollouts = _teacher_rollouts(setting)
    workflow: list[Stage] = [_teacher_rl(setting), rollouts, _warmup(setting, rollouts), _opd(setting)]
    if labels.student_rl:
        workflow.append(_student_rl(setting))
    stages = [*workflow, *_controls(setting, {stage.id: stage for stage in workflow})]
    if request.compute_matched:
        compute = Compute(stages, setting.teacher, setting.student)
        matched = [one for one in request.controls if one in COMPUTE_MATCHED]
        stages += [goes_on(compute, setting.lengths, one, _against(one, workflow)) for one in matched]
    yield from stages
    yield _evaluate(setting, stages)


def _against(control: Control, workflow: list[Stage]) -> str:
    """The model that a control is compared with: what the workflow ends with, or what its bridge does."""
    return made_by(workflow[-1]) or "" if control == "direct_grpo" else "opd_student"


def _controls(setting: Setting, workflow: Workflow) -> Iterator[Stage]:
    for control in setting.request.controls:
        if control == "direct_grpo":
            steps = sum(stage.steps for stage in workflow.values() if isinstance(stage, Grpo))
            yield from _direct_arm(setting, _direct_grpo(setting, steps))
        else:
            yield from control_stages(control, workflow, setting.labels.teacher_rl)


def _direct_arm(setting: Setting, direct: Grpo) -> Iterator[Stage]:
    """The control itself, or several candidates and the choice between them."""
    overrides = setting.request.stages.direct_grpo
    rates = overrides.learning_rates if overrides else None
    if rates is None:
        yield direct
        return
    tried = tuple(candidates(direct, rates))
    yield from tried
    yield _select(setting, direct, tried)


def _teacher_rl(setting: Setting) -> Grpo:
    return _grpo(
        setting,
        "teacher_rl",
        setting.teacher,
        ("teacher_rl",),
        ("base_teacher", "rl_teacher"),
        why="The sparse reward goes to the stronger model",
    )


def _student_rl(setting: Setting) -> Grpo:
    return _grpo(
        setting,
        "student_rl",
        setting.student,
        ("student_rl",),
        ("opd_student", "rl_student"),
        why="After the bridge the student can use the sparse reward too, on labels that stage 1 never saw",
    )


def _direct_grpo(setting: Setting, steps: int) -> Grpo:
    roles: tuple[Literal["teacher_rl", "student_rl"], ...] = ("teacher_rl", "student_rl")
    return _grpo(
        setting,
        "direct_grpo",
        setting.student,
        roles if setting.labels.student_rl else roles[:1],
        ("base_student", "direct_grpo"),
        why="Control: the labels of all RL stages of the workflow, on the student directly",
        steps=steps,
    )


def _grpo(
    setting: Setting,
    kind: Literal["teacher_rl", "student_rl", "direct_grpo"],
    model: Model,
    label_roles: tuple[Literal["teacher_rl", "student_rl"], ...],
    roles: tuple[str, str],
    *,
    why: str,
    steps: int | None = None,
) -> Grpo:
    overrides: GrpoOverrides | None = getattr(setting.request.stages, kind)
    given = overrides.given() if overrides else {}
    labels = sum(getattr(setting.labels, role) for role in label_roles)
    work = replace(_work(setting, model, {}, generates=True), reference=given.get("beta", 0.0) > 0.0)
    rows = Rows(
        field="prompts_per_step",
        asked=given.get("prompts_per_step"),
        wanted=defaults.per_step(labels, defaults.MAX_PROMPTS_PER_STEP),
        available=labels,
        enough=min(defaults.ENOUGH_PROMPTS, labels),
        group=given.get("group_size", defaults.GROUP_SIZE),
    )
    step = choose_step(setting, kind, work, rows, overrides)
    if given.get("loss_type") == "dr_grpo":
        # Dr. GRPO is without the standard deviation as well (arXiv 2503.20783).
        given = {"scale_rewards": "none", **given}
    steps = _steps(given, steps or defaults.grpo_steps(labels, step.rows))
    rates = defaults.learning_rates(model, lora=step.fit.way.lora is not None)
    rate = rates.student_rl if kind == "student_rl" else rates.grpo
    passes = steps * step.rows / labels
    return Grpo(
        **common(setting, kind, step, overrides, steps=steps, optim={"learning_rate": rate}, roles=roles),
        arm=kind if kind == "direct_grpo" else WORKFLOW,
        label_roles=label_roles,
        prompts_per_step=step.rows,
        group_size=step.group,
        why=f"{why}: {labels:,} labels, {passes:.1f} passes in {steps} steps of {step.rows} x {step.group} rollouts; "
        f"{why_fit(setting, step, work)}",
        **{name: given[name] for name in _GRPO_FIELDS if name in given},
    )


def _teacher_rollouts(setting: Setting) -> TeacherRollouts:
    given = _given(setting.request.stages.teacher_rollouts)
    prompts = given.get("prompts", min(setting.bridge_prompts, defaults.MAX_ROLLOUT_PROMPTS))
    if prompts > setting.bridge_prompts:
        raise InvalidPlan(
            f"stages.teacher_rollouts.prompts is {prompts:,}, and the bridge has {setting.bridge_prompts:,} prompts.",
            param="stages.teacher_rollouts.prompts",
        )
    few = max(1, min(defaults.MAX_SAMPLES, defaults.WANTED_ROLLOUTS // prompts))
    samples = given.get("samples_per_prompt", few)
    drawn = sampling(Sampling(), given)
    drawing = _drawing(setting, setting.teacher, drawn)
    batch = _batch(setting, "teacher_rollouts", drawing, prompts * samples, given)
    return TeacherRollouts(
        id="teacher_rollouts",
        seed=defaults.derive_seed(setting.request.seed, "teacher_rollouts"),
        estimate=_estimate(setting, drawing, batch),
        why=f"The RL'd teacher answers {prompts:,} prompts, each {'once' if samples == 1 else f'{samples} times'}; the "
        "warmup reads the stored rollouts.",
        prompts=prompts,
        samples_per_prompt=samples,
        sampling=drawn,
        batch_size=batch,
        dtype=dtype_for(setting.hardware),
    )


def _warmup(setting: Setting, rollouts: TeacherRollouts) -> Warmup:
    overrides = setting.request.stages.warmup
    given = _given(overrides)
    stored = rollouts.prompts * rollouts.samples_per_prompt
    work = _work(setting, setting.student, given, setting.teacher, generates=False)
    step = choose_step(setting, "warmup", work, _sequences(given, stored), overrides)
    steps = _steps(given, defaults.warmup_steps(stored, step.sequences))
    most = given.get("max_steps", 3 * steps)
    if most < steps:
        # Only the cap was given: the planner's own number of steps yields to it.
        steps = most
    lora = step.fit.way.lora is not None
    rate = defaults.learning_rates(setting.student, lora=lora).warmup
    return Warmup(
        **common(
            setting,
            "warmup",
            step,
            overrides,
            steps=steps,
            optim={"learning_rate": rate},
            roles=("base_student", "warmup_student"),
        ),
        sequences_per_step=step.sequences,
        max_steps=most,
        check_every=given.get("check_every", max(1, min(25, steps // 4))),
        why=f"Forward KL on {stored:,} stored teacher rollouts brings the student close enough for gate C2; at least "
        f"{steps} steps, at most {most}; {why_fit(setting, step, work)}",
        **{name: given[name] for name in _BRIDGE_FIELDS if name in given},
    )


def _opd(setting: Setting) -> Opd:
    overrides = setting.request.stages.opd
    given = _given(overrides)
    work = _work(setting, setting.student, given, setting.teacher, generates=True)
    step = choose_step(setting, "opd", work, _sequences(given, setting.bridge_prompts), overrides)
    steps = _steps(given, defaults.opd_steps(setting.bridge_prompts, step.sequences))
    optim = {
        "learning_rate": defaults.learning_rates(setting.student, lora=step.fit.way.lora is not None).opd,
        "weight_decay": defaults.OPD_WEIGHT_DECAY,
    }
    roles: tuple[str, str] = ("warmup_student", "opd_student")
    return Opd(
        **common(setting, "opd", step, overrides, steps=steps, optim=optim, roles=roles),
        sequences_per_step=step.sequences,
        why=f"Reverse KL to the RL'd teacher on the student's own rollouts, one for each of {step.sequences} prompts a "
        f"step, {steps * step.sequences / setting.bridge_prompts:.1f} passes over the bridge prompts; "
        f"{why_fit(setting, step, work)}",
        **{name: given[name] for name in _BRIDGE_FIELDS if name in given},
    )


def _select(setting: Setting, direct: Grpo, tried: tuple[Grpo, ...]) -> Select:
    problems, k = setting.labels.validation, setting.gates.c1.k
    drawing = _drawing(setting, setting.student, direct.sampling)
    batch = _batch(setting, "select", drawing, problems * k, {})
    return Select(
        id=f"{direct.id}_select",
        arm=direct.arm,
        seed=defaults.derive_seed(setting.request.seed, "select"),
        estimate=_estimate(setting, drawing, batch),
        why=f"The learning rate of the control with the best avg@{k} on {problems:,} validation problems is kept.",
        candidates=tuple(one.trains for one in tried),
        keeps_as=direct.trains,
        k=k,
        sampling=direct.sampling,
        batch_size=batch,
        dtype=dtype_for(setting.hardware),
    )


def _evaluate(setting: Setting, stages: list[Stage]) -> Evaluate:
    given, labels = _given(setting.request.stages.evaluate), setting.labels
    models = _models(stages)
    k = given.get("k", defaults.evaluation_samples(labels.test))
    largest = max(setting.teacher, setting.student, key=lambda model: model.parameters)
    drawn = sampling(defaults.EVALUATION, given)
    drawing = _drawing(setting, largest, drawn)
    batch = _batch(setting, "evaluate", drawing, labels.test * k, given)
    return Evaluate(
        id="evaluate",
        seed=defaults.derive_seed(setting.request.seed, "evaluate"),
        estimate=_estimate(setting, drawing, batch),
        why=f"avg@{k} and pass@{k} of {len(models)} models on {labels.test:,} test problems that no stage has read.",
        models=models,
        k=k,
        sampling=drawn,
        batch_size=batch,
        dtype=dtype_for(setting.hardware),
    )


def _models(stages: list[Stage]) -> tuple[str, ...]:
    """The two base models, every stage of the workflow, and what each control ends with; no candidate."""
    tried = {model for stage in stages if isinstance(stage, Select) for model in stage.candidates}
    made = [model for stage in stages if (model := made_by(stage)) and stage.arm in (WORKFLOW, model)]
    students = [model for model in made if model != "rl_teacher" and model not in tried]
    return ("base_teacher", "rl_teacher", "base_student", *students)


def _sequences(given: dict[str, Any], available: int) -> Rows:
    return Rows(
        field="sequences_per_step",
        asked=given.get("sequences_per_step"),
        wanted=defaults.per_step(available, defaults.MAX_SEQUENCES),
        available=available,
        enough=min(defaults.ENOUGH_SEQUENCES, available),
    )


def _work(setting: Setting, model: Model, given: dict[str, Any], *frozen: Model, generates: bool) -> Work:
    """Of a training stage, its sequences still open. Rollouts of the bridge may end early."""
    longest = ceil(given.get("prefix_share", 1.0) * setting.lengths.max_completion)
    return Work(
        model=model,
        frozen=frozen,
        sequences=0,
        tokens=setting.max_prompt + longest,
        prompt=setting.max_prompt,
        generates=generates,
        measures_kl=not generates or bool(given.get("extrapolate")),
        vllm=generates and setting.vllm,
    )


def _drawing(setting: Setting, model: Model, drawn: Sampling) -> Drawing:
    return Drawing(model, setting.max_prompt, setting.lengths.max_completion, drawn, setting.vllm)


def _estimate(setting: Setting, drawing: Drawing, batch: int) -> Estimate:
    return Estimate(tokens=LATER, seconds=LATER, **told(drawing.memory(setting.hardware, batch), setting.hardware))


def _batch(setting: Setting, stage: StageKind, drawing: Drawing, completions: int, given: dict[str, Any]) -> int:
    """The generation batch: as asked if it fits, else the largest that does."""
    asked: int | None = given.get("batch_size")
    wanted = asked or min(defaults.GENERATION_BATCH, completions)
    batch = generation_batch(drawing, setting.hardware, wanted)
    if asked is not None and batch < asked:
        field = f"stages.{stage}.batch_size"
        raise InvalidPlan(f"{field} ({asked}) does not fit in memory; {batch} does.", param=field)
    return batch


def _given(overrides: Overrides | None) -> dict[str, Any]:
    return overrides.given() if overrides else {}


def _steps(given: dict[str, Any], planned: int) -> int:
    """As many as were asked for, else as planned, and never fewer than a warmup of the learning rate that was."""
    asked: int | None = given.get("steps")
    return asked or max(planned, given.get("warmup_steps", 0))
