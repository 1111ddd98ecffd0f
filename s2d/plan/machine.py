"""The machine that a plan is for, and what is known of its speed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from s2d.plan.frozen import Frozen
from s2d.plan.names import StageKind


class Rates(Frozen):
    """What a machine reaches, per device, and what each piece of work costs beside its arithmetic; see `timing`."""

    flops: float = Field(gt=0, description="FLOP/s of a training pass, in the plan's dtype.")
    bytes: float = Field(gt=0, description="Bytes/s of weights and caches that a decoding step reads.")
    decode_step_s: float = Field(ge=0, description="Seconds of a decoding step, whatever the model.")
    decode_layer_s: float = Field(ge=0, description="Seconds of a decoding step, for each layer.")
    micro_batch_s: float = Field(ge=0, description="Seconds of a forward and backward pass, whatever the model.")
    micro_layer_s: float = Field(ge=0, description="Seconds of a forward and backward pass, for each layer.")
    step_s: float = Field(ge=0, description="Seconds of an optimizer step, whatever the model.")
    start_s: float = Field(ge=0, description="Seconds until a stage's process has its libraries.")
    load_bytes: float = Field(gt=0, description="Bytes/s of loading weights.")


class Factor(Frozen):
    """How stages took, as a part of what was expected: the middle, and the factor around it that holds 80 %."""

    middle: float = Field(gt=0)
    spread: float = Field(ge=1)


class KindFactor(Factor):
    """Of one kind of stage."""

    kind: StageKind


class Calibration(Frozen):
    """What is known of a machine beyond its datasheet."""

    rates: Rates
    probed: bool = Field(description="Whether the rates were measured, and not guessed from the datasheet.")
    factors: tuple[KindFactor, ...] = Field(default=(), description="One for each kind of stage.")
    observed: int = Field(default=0, ge=0, description="Stages that this machine has run, and they come from.")

    def factor(self, kind: StageKind) -> Factor:
        return next(one for one in self.factors if one.kind == kind)


class Hardware(Frozen):
    device: Literal["cpu", "cuda"]
    devices: int = Field(ge=1, description="Processes that train: GPUs, or 1 on CPU.")
    memory_gib: float = Field(gt=0, description="Memory per device (RAM on CPU), GiB.")
    cpu_threads: int = Field(ge=1, description="Torch threads per process.")
    name: str = ""
    tflops: float = Field(gt=0, description="Assumed peak per device in the plan's dtype, TFLOP/s.")
    bandwidth_gbs: float = Field(gt=0, description="Assumed memory bandwidth per device, GB/s.")
    price_per_hour: float | None = Field(
        default=None, gt=0, description="Of one device, in the user's currency; None: cost is told in device-hours."
    )
    calibration: Calibration | None = Field(default=None, description="None: times are guessed from the datasheet.")
