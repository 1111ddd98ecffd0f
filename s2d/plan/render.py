"""A plan as a page that a person understands: markdown for files and the API, rich for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from s2d.plan.document import (
    Evaluate,
    Grpo,
    Model,
    Opd,
    Plan,
    Prompting,
    Range,
    Select,
    Stage,
    TeacherRollouts,
    Training,
    Warmup,
)

_COLUMNS = ("#", "stage", "trains", "labels", "steps", "sequences a step", "learning rate", "memory/device", "time")


def to_markdown(plan: Plan) -> str:
    """The whole plan as one markdown page."""
    parts = [
        f"# Plan `{plan.id}`",
        "\n".join(f"- {name}: {value}" for name, value in _facts(plan)),
        "## Stages",
        _table(_COLUMNS, [_row(plan, i, stage) for i, stage in enumerate(plan.stages, 1)]),
        _total(plan),
        "## Why",
        "\n".join(f"- **{stage.id}**: {stage.why}" for stage in plan.stages),
        "## Labels",
        _table(("use", "labels"), _labels(plan)),
        "## Gates",
        "\n".join(f"- {line}" for line in _gates(plan)),
    ]
    if plan.warnings:
        parts += ["## Warnings", "\n".join(f"- {warning.message}" for warning in plan.warnings)]
    return "\n\n".join(parts) + "\n"


def to_rich(plan: Plan) -> RenderableType:
    """The plan for a terminal."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(plan):
        facts.add_row(Text(name, style="bold"), Text(value))
    labels = Table("use", "labels", title="Labels", title_justify="left")
    for row in _labels(plan):
        labels.add_row(*row)
    stages = Table(*_COLUMNS, title="Stages", title_justify="left")
    for number, stage in enumerate(plan.stages, 1):
        stages.add_row(*_row(plan, number, stage))
    whys = [Text(f"{stage.id}: {stage.why}") for stage in plan.stages]
    gates = [Text(line) for line in _gates(plan)]
    warnings = [Text(f"! {warning.message}", style="yellow") for warning in plan.warnings]
    body = Group(facts, Text(), labels, Text(), stages, Text(_total(plan)), Text(), *whys, Text(), *gates, *warnings)
    return Panel(body, title=plan.id, title_align="left")


def _facts(plan: Plan) -> list[tuple[str, str]]:
    data, hardware = plan.data, plan.hardware
    devices = f"{hardware.devices} x {hardware.name or 'GPU'}" if hardware.device == "cuda" else "CPU"
    return [
        ("teacher", _model(plan.teacher)),
        ("student", _model(plan.student)),
        (
            "data",
            f"{data.labeled:,} labeled and {data.unlabeled:,} unlabeled rows"
            + (f" of {data.file_id}" if data.file_id else ""),
        ),
        ("bridge", f"{data.bridge_prompts:,} prompts, answers unused"),
        ("verifier", plan.verifier.name),
        ("hardware", f"{devices}, {hardware.memory_gib:,.1f} GiB each, {hardware.cpu_threads} threads"),
        (
            "tokens",
            f"prompts of at most {plan.max_prompt_tokens:,}, completions of at most {plan.max_completion_tokens:,}",
        ),
        *(("prompt", line) for line in _prompting(plan.prompt)),
        ("seed", str(plan.seed)),
    ]


def _prompting(prompt: Prompting) -> list[str]:
    told = [("system message", prompt.system), ("added to the last message", prompt.suffix)]
    arguments = ", ".join(f"{name}: {value}" for name, value in prompt.template.items())
    return [f"{name}: {value!r}" for name, value in told if value] + ([f"template: {arguments}"] if arguments else [])


def _model(model: Model) -> str:
    return f"{model.name} ({_count(model.parameters)} parameters, {model.model_type})"


def _labels(plan: Plan) -> list[tuple[str, str]]:
    labels = plan.data.labels
    return [
        ("teacher RL", f"{labels.teacher_rl:,}"),
        ("student RL (held out)", f"{labels.student_rl:,}"),
        ("validation", f"{labels.validation:,}"),
        ("test", f"{labels.test:,}"),
        ("total", f"{labels.total:,}"),
    ]


def _row(plan: Plan, number: int, stage: Stage) -> tuple[str, ...]:
    memory, time = _range(stage.estimate.memory_gib, "GiB"), _time(stage.estimate.seconds)
    if not isinstance(stage, Training):
        return (str(number), stage.id, "", _read(plan, stage), "", "", "", memory, time)
    adapters = " (LoRA)" if stage.lora else ""
    sequences = stage.per_device_batch_size * stage.gradient_accumulation * plan.hardware.devices
    return (
        str(number),
        stage.id,
        stage.trains + adapters,
        _read(plan, stage),
        _steps(stage),
        f"{sequences:,}",
        f"{stage.optim.learning_rate:g}",
        memory,
        time,
    )


def _steps(stage: Training) -> str:
    most: int = getattr(stage, "max_steps", stage.steps)
    return f"{stage.steps:,}" if most == stage.steps else f"{stage.steps:,} to {most:,}"


def _read(plan: Plan, stage: Stage) -> str:
    if isinstance(stage, Grpo):
        return f"{sum(getattr(plan.data.labels, role) for role in stage.label_roles):,}"
    if isinstance(stage, Evaluate):
        return f"{plan.data.labels.test:,} (test)"
    if isinstance(stage, Select):
        return f"{plan.data.labels.validation:,} (validation)"
    if isinstance(stage, Warmup):
        return _read(plan, plan.stage(stage.rollouts))
    return f"none ({_prompts(plan, stage):,} prompts)"


def _prompts(plan: Plan, stage: TeacherRollouts | Opd) -> int:
    if isinstance(stage, TeacherRollouts):
        return stage.prompts
    return plan.data.bridge_prompts if stage.pool == "bridge" else plan.data.labels.teacher_rl


def _gates(plan: Plan) -> list[str]:
    c1, c2 = plan.gates.c1, plan.gates.c2
    then = "the job stops" if plan.gates.on_failure == "stop" else "the job goes on and says so"
    return [
        f"C1, after teacher_rl: the teacher's avg@{c1.k} on {plan.data.labels.validation:,} validation problems rises "
        f"by more than {c1.min_gain:g} ({c1.confidence:.0%} confidence, paired); if not, {then}.",
        f"C2, before opd: reverse KL on student rollouts of {c2.prompts:,} prompts is at most {c2.max_kl:g} nats per "
        f"token and top tokens agree on at least {c2.min_agreement:.0%}; the warmup goes on up to its cap; if "
        f"it does not hold then, {then}.",
    ]


def _total(plan: Plan) -> str:
    seconds = [stage.estimate.seconds for stage in plan.stages]
    whole = Range(low=sum(one.low for one in seconds), high=sum(one.high for one in seconds))
    return f"In all {_time(whole)}. Times are uncalibrated estimates: read them as orders of magnitude."


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _range(value: Range, unit: str) -> str:
    low, high = f"{value.low:,.1f}", f"{value.high:,.1f}"
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"


def _time(seconds: Range) -> str:
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds.high >= 2 * size:
            return _range(Range(low=seconds.low / size, high=seconds.high / size), unit)
    return _range(seconds, "s")


def _count(value: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)
