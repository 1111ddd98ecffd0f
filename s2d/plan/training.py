"""The part that all training stages share: how many sequences a step has, what fits, and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

from s2d.errors import InvalidPlan
from s2d.plan.defaults import derive_seed
from s2d.plan.document import Alternative, Estimate, LabelAllocation, Lora, Model, Optim, Range, Sampling
from s2d.plan.gates import Gates
from s2d.plan.machine import Hardware
from s2d.plan.memory import Way, Work, dtype_for
from s2d.plan.names import StageKind
from s2d.plan.overrides import TrainingOverrides
from s2d.plan.request import PlanRequest
from s2d.plan.sizing import Fit, alternatives, fit, refuse, state_gib, told
from s2d.plan.timing import Lengths

#: Until `s2d.plan.work` has told: it needs all stages.
LATER = Range(low=0, high=0)
_OPTIM = tuple(Optim.model_fields)
_SAMPLING = tuple(Sampling.model_fields)
#: Settings of a stage that decide what fits, beside the rows of a step.
_MEMORY = ("per_device_batch_size", "gradient_checkpointing", "sharded", "group_size")


@dataclass(frozen=True)
class Setting:
    """What is decided before the stages are."""

    request: PlanRequest
    teacher: Model
    student: Model
    hardware: Hardware
    labels: LabelAllocation
    bridge_prompts: int
    lengths: Lengths
    max_prompt: int
    gates: Gates

    @property
    def vllm(self) -> bool:
        """Whether vLLM draws the rollouts."""
        return self.request.rollout_engine == "vllm"

    @property
    def loras(self) -> tuple[Lora | None, ...]:
        """The allowed choices, in order of preference."""
        wish = self.request.lora
        if isinstance(wish, Lora):
            return (wish,)
        return {None: (None, Lora()), True: (Lora(),), False: (None,)}[wish]


@dataclass(frozen=True)
class Step:
    """One training stage's step: `rows` prompts of `group` sequences each, and the settings that fit them."""

    rows: int
    group: int
    fit: Fit
    devices: int
    alternatives: tuple[Alternative, ...]

    @property
    def sequences(self) -> int:
        return self.rows * self.group

    @property
    def accumulation(self) -> int:
        return self.sequences // (self.fit.per_device_batch_size * self.devices)


@dataclass(frozen=True)
class Rows:
    """How many rows a step takes: as asked under the name `field`, or the planner's choice, of `available`."""

    field: str
    asked: int | None
    wanted: int
    available: int
    enough: int
    group: int = 1


def choose_step(setting: Setting, kind: StageKind, work: Work, rows: Rows, overrides: TrainingOverrides | None) -> Step:
    """The largest step that fits: all weights with enough rows, shared among devices if need be, then LoRA, then fewer
    rows.

    `work.sequences` is ignored: it follows from the rows tried.

    Raises:
        InvalidPlan: a setting that is impossible, or nothing fits.
    """
    devices = setting.hardware.devices
    batch = overrides.per_device_batch_size if overrides else None
    checkpointing = overrides.gradient_checkpointing if overrides else None
    ways = _ways(setting, kind, overrides)
    candidates = _candidates(kind, rows, devices)
    usable = [n for n in candidates if batch is None or (n * rows.group // devices) % batch == 0]
    if not usable:
        each = candidates[0] * rows.group // devices
        raise InvalidPlan(
            f"stages.{kind}.per_device_batch_size ({batch}) does not divide the {each} sequences that a device has in "
            "a step.",
            param=f"stages.{kind}.per_device_batch_size",
        )
    few = [n for n in usable if n < rows.enough] if rows.asked is None else []
    for some in ([n for n in usable if n not in few], few):
        for way in ways:
            for n in some:
                sized = replace(work, sequences=n * rows.group // devices)
                if found := fit(sized, setting.hardware, (way,), batch, checkpointing):
                    tried = alternatives(sized, setting.hardware, ways, batch, checkpointing)
                    return Step(n, rows.group, found, devices, tried)
    smallest = replace(work, sequences=usable[-1] * rows.group // devices)
    raise refuse(smallest, setting.hardware, ways, kind, _asked(setting, rows, overrides))


def _ways(setting: Setting, kind: StageKind, overrides: TrainingOverrides | None) -> tuple[Way, ...]:
    """The allowed ones, in order of preference.

    Raises:
        InvalidPlan: sharding is asked for where it is not possible.
    """
    asked = overrides.sharded if overrides else None
    against = _against_sharding(setting, overrides.given() if overrides else {})
    if asked and against:
        raise InvalidPlan(f"stages.{kind}.sharded {against}.", param=f"stages.{kind}.sharded")
    whole = () if asked else tuple(Way(lora) for lora in setting.loras)
    if asked is False or against:
        return whole
    # LoRA trains other weights, so it comes last.
    return (*(way for way in whole if way.lora is None), Way(sharded=True), *(way for way in whole if way.lora))


def _against_sharding(setting: Setting, given: dict[str, Any]) -> str | None:
    """Why this stage cannot be sharded; None where it can."""
    if setting.hardware.devices == 1:
        return "needs two devices or more"
    if None not in setting.loras:
        return "is for training all weights, and the request asks for LoRA"
    if setting.vllm:
        return "does not go with rollout_engine vllm"
    # They run parts of a model on their own, outside of where its weights are gathered.
    for name in ("extrapolate", "score_once"):
        if given.get(name):
            return f"does not go with {name}"
    return "does not go with token_share under 1" if given.get("token_share", 1.0) < 1.0 else None


def _asked(setting: Setting, rows: Rows, overrides: TrainingOverrides | None) -> dict[str, Any]:
    """What the request says of the stage's memory."""
    lora = setting.request.lora
    rank = {"lora.rank": lora.rank} if isinstance(lora, Lora) else {}
    return rank | (overrides.given(*_MEMORY, rows.field) if overrides else {})


def _candidates(kind: StageKind, rows: Rows, devices: int) -> list[int]:
    """Rows of a step, largest first; each gives every device the same number of sequences."""
    field, unit = f"stages.{kind}.{rows.field}", devices // gcd(devices, rows.group)
    if rows.asked is not None:
        if rows.asked > rows.available:
            raise InvalidPlan(f"{field} is {rows.asked}, and the stage has {rows.available} of them.", param=field)
        if rows.asked % unit:
            raise InvalidPlan(f"{field} ({rows.asked}) must be a multiple of {unit} on {devices} devices.", param=field)
        return [rows.asked]
    halves = {rows.wanted >> shift for shift in range(rows.wanted.bit_length())}
    rounded = {-(-n // unit) * unit for n in halves}
    usable = sorted((n for n in rounded if n <= rows.available), reverse=True)
    if not usable:
        raise InvalidPlan(
            f"{kind} has {rows.available} prompts, too few to give each of {devices} devices one: use fewer devices.",
            param="hardware.devices",
        )
    return usable


def common(
    setting: Setting,
    kind: StageKind,
    step: Step,
    overrides: TrainingOverrides | None,
    *,
    steps: int,
    optim: dict[str, Any],
    roles: tuple[str, str],
) -> dict[str, Any]:
    """The fields of `document.Training`; `roles` are (starts_from, trains)."""
    given = overrides.given() if overrides else {}
    starts_from, trains = roles
    return {
        "id": kind,
        "kind": kind,
        "seed": derive_seed(setting.request.seed, kind),
        "trains": trains,
        "starts_from": starts_from,
        "steps": steps,
        "optim": _optim(kind, steps, optim, given),
        "sampling": sampling(Sampling(), given),
        "per_device_batch_size": step.fit.per_device_batch_size,
        "gradient_accumulation": step.accumulation,
        "dtype": dtype_for(setting.hardware),
        "gradient_checkpointing": step.fit.gradient_checkpointing,
        "lora": step.fit.way.lora,
        "sharded": step.fit.way.sharded,
        "save_every": given.get("save_every", max(1, min(50, steps // 4))),
        "alternatives": step.alternatives,
        "estimate": Estimate(tokens=LATER, seconds=LATER, **told(step.fit.memory, setting.hardware)),
    }


def _optim(kind: StageKind, steps: int, defaults: dict[str, Any], given: dict[str, Any]) -> Optim:
    asked = {name: given[name] for name in _OPTIM if name in given}
    if asked.get("warmup_steps", 0) > steps:
        raise InvalidPlan(
            f"stages.{kind}.warmup_steps ({asked['warmup_steps']}) is more than the stage's {steps} steps.",
            param=f"stages.{kind}.warmup_steps",
        )
    return Optim(**{"warmup_steps": min(10, steps // 10), **defaults, **asked})


def sampling(default: Sampling, given: dict[str, Any]) -> Sampling:
    return default.model_copy(update={name: given[name] for name in _SAMPLING if name in given})


def why_fit(setting: Setting, step: Step, work: Work) -> str:
    """Why this stage is trained with or without adapters, or with shared states."""
    if step.fit.way.sharded:
        return f"all weights are trained, their states shared among {step.devices} devices (FSDP)."
    if step.fit.way.lora is None:
        return "all weights are trained."
    if setting.request.lora is not None:
        return "LoRA, as asked."
    full = min((one for one in step.alternatives if not one.lora), key=lambda one: one.memory_gib)
    return (
        f"LoRA, because full fine-tuning would need about {full.memory_gib:.0f} GiB per device "
        f"({state_gib(work.model):.0f} of it for weights, gradients and AdamW) and "
        f"{setting.hardware.memory_gib:.0f} are there."
    )
