"""What is told in sentences: the answer, what the plan is about, the price, the gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from s2d.plan.document import Model, Plan, Range, Stage, Training
from s2d.plan.evidence import PassRates
from s2d.plan.machine import Hardware
from s2d.plan.page.units import between, count, duration, money, number, scaled
from s2d.plan.prompting import Prompting
from s2d.plan.sizing import USABLE

CALIBRATED = "Times are calibrated on this machine (stages that it has run: {stages:,})."
UNCALIBRATED = "Times are uncalibrated estimates: read them as orders of magnitude."
NO_PRICE = "No price is built in, as prices age: give yours with `--price` (hardware.price_per_hour)."


def answer(plan: Plan) -> str:
    """Question and answer: what is there, whether it fits, and what it takes."""
    hardware, labels = plan.hardware, plan.data.labels.total
    adapters = [stage.id for stage in plan.stages if isinstance(stage, Training) and stage.lora]
    fullest = max(plan.stages, key=lambda stage: stage.estimate.memory_gib.high)
    peak = between(fullest.estimate.memory_gib)
    time, hours, *paid = cost(plan, plan.stages)
    return (
        f"{labels:,} labels, {_short(plan.teacher)} → {_short(plan.student)} on {_machine(hardware)}: "
        f"fits, {f'with LoRA in {_listed(adapters)}' if adapters else 'all weights are trained'}; "
        f"{fullest.id} takes most, {peak} of {number(USABLE * hardware.memory_gib)} usable GiB. "
        f"In all {time}: {hours} device-hours{f', cost {paid[0]}' if paid else ''}."
    )


def span(stages: Sequence[Stage]) -> Range:
    """Seconds of stages that run one after the other."""
    seconds = [stage.estimate.seconds for stage in stages]
    return Range(low=sum(one.low for one in seconds), high=sum(one.high for one in seconds))


def cost(plan: Plan, stages: Sequence[Stage]) -> tuple[str, ...]:
    """Time, device-hours and, with a price, what they cost."""
    seconds, rate = span(stages), plan.hardware.price_per_hour
    # A stage that uses one device alone still keeps the others from other work.
    hours = scaled(seconds, plan.hardware.devices / 3600)
    return duration(seconds), between(hours), *((money(scaled(hours, rate)),) if rate else ())


def price(plan: Plan) -> str:
    """What the ranges of time and cost rest on."""
    known, given = plan.hardware.calibration, plan.hardware.price_per_hour
    times = CALIBRATED.format(stages=known.observed) if known else UNCALIBRATED
    told = NO_PRICE if given is None else f"At {number(given, 2)} for a device and hour, in your currency."
    return f"{times} {told}"


def about(plan: Plan) -> Iterator[tuple[str, str]]:
    """Name and value of what the plan is made for."""
    data, hardware = plan.data, plan.hardware
    yield "teacher", _model(plan.teacher)
    yield "student", _model(plan.student)
    of = f" of {data.file_id}" if data.file_id else ""
    yield "data", f"{data.labeled:,} labeled and {data.unlabeled:,} unlabeled rows{of}"
    yield "bridge", f"{data.bridge_prompts:,} prompts, answers unused"
    yield "verifier", plan.verifier.name
    yield "hardware", f"{_machine(hardware)} each, {hardware.cpu_threads} threads"
    yield "tokens", _tokens(plan)
    yield from (("prompt", line) for line in _prompting(plan.prompt))
    if plan.evidence:
        yield "probe", f"teacher {_rates(plan.evidence.teacher)}; student {_rates(plan.evidence.student)}"
    yield "seed", str(plan.seed)


def gates(plan: Plan) -> Iterator[str]:
    """What each gate asks, and what happens when it does not hold."""
    c1, c2 = plan.gates.c1, plan.gates.c2
    then = "the job stops" if plan.gates.on_failure == "stop" else "the job goes on and says so"
    yield (
        f"C1, after teacher_rl: the teacher's avg@{c1.k} on {plan.data.labels.validation:,} validation problems rises "
        f"by more than {c1.min_gain:g} ({c1.confidence:.0%} confidence, paired); if not, {then}."
    )
    yield (
        f"C2, before opd: reverse KL on student rollouts of {c2.prompts:,} prompts is at most {c2.max_kl:g} nats per "
        f"token and top tokens agree on at least {c2.min_agreement:.0%}; the warmup goes on up to its cap; if "
        f"it does not hold then, {then}."
    )


def advice(plan: Plan) -> Iterator[str]:
    """What we would do, and what that rests on."""
    for one in plan.advice:
        yield f"{one.message} Rests on {'; '.join(one.evidence)}."


def _tokens(plan: Plan) -> str:
    mean = plan.mean_completion_tokens
    taken = "20 to 100 % of that" if mean is None else f"{number(mean, 0)} on average"
    return (
        f"prompts of at most {plan.max_prompt_tokens:,}, {number(plan.mean_prompt_tokens, 0)} on average; "
        f"completions of at most {plan.max_completion_tokens:,}, {taken}"
    )


def _rates(rates: PassRates) -> str:
    return (
        f"avg@{rates.k} {rates.avg:.0%} ± {rates.half_width:.0%} on {rates.problems:,} problems, never right on "
        f"{rates.never:.0%}, always on {rates.always:.0%}"
    )


def _machine(hardware: Hardware) -> str:
    devices = f"{hardware.devices} x {hardware.name or 'GPU'}" if hardware.device == "cuda" else "CPU"
    return f"{devices}, {number(hardware.memory_gib)} GiB"


def _prompting(prompt: Prompting) -> Iterator[str]:
    told = (("system message", prompt.system), ("added to the last message", prompt.suffix))
    yield from (f"{name}: {value!r}" for name, value in told if value)
    if prompt.template:
        yield "template: " + ", ".join(f"{name}: {value}" for name, value in prompt.template.items())


def _model(model: Model) -> str:
    return f"{model.name} ({count(model.parameters)} parameters, {model.model_type})"


def _short(model: Model) -> str:
    """The last part of a hub id or of a path."""
    return model.name.rstrip("/").rpartition("/")[2]


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
