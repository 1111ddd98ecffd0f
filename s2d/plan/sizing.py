"""The settings that make a stage fit on its device, and what the plan tells of its memory.

How much a setting takes is said by `s2d.plan.memory`. What is chosen fits with the upper end of its range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from s2d.errors import InvalidPlan
from s2d.plan import memory
from s2d.plan.document import Alternative, MemoryItem, Model, Range, Sampling
from s2d.plan.machine import Hardware
from s2d.plan.memory import GIB, Memory, Way, Work

#: The part of a device that a plan fills; the rest is the allocator's.
USABLE = 0.92
MAX_MICRO_BATCH = 256
#: Without checkpointing at fewer sequences than this, recomputing is the better use of memory.
WORTH_NO_CHECKPOINTING = 4


#: Answers that are kept: a table of plans asks the same of many rows.
KEPT = 4096


@dataclass(frozen=True)
class Fit:
    """Settings of a training stage, and the memory per device that they are expected to take."""

    per_device_batch_size: int
    gradient_checkpointing: bool
    way: Way
    memory: Memory


def fit(
    work: Work,
    hardware: Hardware,
    ways: tuple[Way, ...],
    batch_size: int | None = None,
    checkpointing: bool | None = None,
) -> Fit | None:
    """The first settings that fit: large batches, checkpointing only where it is needed.

    `ways` are the allowed ones in order; `batch_size` and `checkpointing` fix a setting. None if nothing fits.
    """
    for way in ways:
        for checkpoint in _checkpointing(checkpointing):
            found = _largest(work, hardware, way, batch_size, checkpoint)
            few = found is not None and found.per_device_batch_size < min(WORTH_NO_CHECKPOINTING, work.sequences)
            recompute = few and not checkpoint and checkpointing is None and batch_size is None
            if found is not None and not recompute:
                return found
    return None


def _checkpointing(asked: bool | None) -> tuple[bool, ...]:
    return (False, True) if asked is None else (asked,)


@lru_cache(KEPT)
def _largest(work: Work, hardware: Hardware, way: Way, batch: int | None, checkpoint: bool) -> Fit | None:
    """With the largest micro-batch that fits, or with the one that is asked for."""
    if over_gib(memory.states(work, hardware, way), hardware):
        return None
    for size in _batches(work.sequences) if batch is None else (batch,):
        peak = memory.training(work, hardware, way, size, checkpoint)
        if over_gib(peak, hardware) == 0.0:
            return Fit(size, checkpoint, way, peak)
    return None


def _batches(sequences: int) -> Iterator[int]:
    """Divisors of `sequences`, largest first."""
    return (n for n in range(min(sequences, MAX_MICRO_BATCH), 0, -1) if sequences % n == 0)


@lru_cache(KEPT)
def alternatives(
    work: Work,
    hardware: Hardware,
    ways: tuple[Way, ...],
    batch_size: int | None,
    checkpointing: bool | None,
) -> tuple[Alternative, ...]:
    """All ways that were open to the stage, cheapest first, each with its largest micro-batch that fits, else 1."""
    found = []
    for way in ways:
        for checkpoint in _checkpointing(checkpointing):
            size, peak = batch_size or 1, None
            if fitting := _largest(work, hardware, way, batch_size, checkpoint):
                size, peak = fitting.per_device_batch_size, fitting.memory
            peak = peak or memory.training(work, hardware, way, size, checkpoint)
            found.append(
                Alternative(
                    lora=way.lora is not None,
                    sharded=way.sharded,
                    gradient_checkpointing=checkpoint,
                    per_device_batch_size=size,
                    memory_gib=_gib(peak.total),
                    over_gib=over_gib(peak, hardware),
                )
            )
    return tuple(found)


def over_gib(peak: Memory, hardware: Hardware) -> float:
    """By how much the upper end of a peak is more than can be used, GiB; 0 where it fits."""
    over = memory.bounds(peak, hardware)[1] / GIB - USABLE * hardware.memory_gib
    return max(0.0, math.ceil(1000 * over) / 1000)


def told(peak: Memory, hardware: Hardware) -> dict[str, Any]:
    """The fields of `document.Estimate`: the range, and the items that add up to what is expected."""
    low, high = memory.bounds(peak, hardware)
    items = tuple(MemoryItem(name=name, gib=_gib(size)) for name, size in peak._asdict().items() if _gib(size))
    return {"memory_gib": Range(low=_gib(low), high=_gib(high)), "memory": items}


def _gib(size: float) -> float:
    return round(size / GIB, 3)


def refuse(work: Work, hardware: Hardware, ways: tuple[Way, ...], stage: str, asked: dict[str, Any]) -> InvalidPlan:
    """The error for a stage that fits in no way with what was asked for: by how much it misses, and what would do."""
    batch, checkpoint = asked.get("per_device_batch_size", 1), asked.get("gradient_checkpointing", True)
    least = memory.bounds(memory.training(work, hardware, ways[-1], batch, checkpoint), hardware)[1] / GIB
    states = memory.states(work, hardware, ways[-1]).total / GIB
    advice = ["a smaller model", "fewer max_completion_tokens", "fewer sequences in a step"]
    if ways[-1].lora is None:
        advice.insert(0, "lora")
    if asked:
        advice.insert(0, "another value there")
    fixed = f" with {', '.join(f'{name} {value}' for name, value in asked.items())}, as asked," if asked else ""
    return InvalidPlan(
        f"{stage}{fixed} needs about {least:.1f} GiB per device ({states:.1f} GiB of it whatever is computed) "
        f"and {_usable(hardware)}: {least - USABLE * hardware.memory_gib:.1f} GiB too much. What would help: "
        f"{', '.join(advice)}, or a device with at least {math.ceil(least / USABLE)} GiB.",
        param=f"stages.{stage}",
    )


def _usable(hardware: Hardware) -> str:
    return f"{USABLE * hardware.memory_gib:.1f} of {hardware.memory_gib:.1f} GiB can be used"


def state_gib(model: Model) -> float:
    """Weights, gradients and optimizer of full fine-tuning: 16 bytes a parameter, GiB."""
    return (2 * memory.FP32 + memory.MOMENT_BYTES) * model.parameters / GIB


@dataclass(frozen=True)
class Drawing:
    """A stage that only generates: prompts and completions of at most so many tokens."""

    model: Model
    prompt: int
    completion: int
    sampling: Sampling
    vllm: bool = False

    def memory(self, hardware: Hardware, sequences: int) -> Memory:
        """The peak of so many sequences together."""
        if self.vllm:
            return memory.engine(hardware)
        nucleus = self.sampling.top_p < 1.0 or self.sampling.top_k > 0
        longest = self.prompt + self.completion
        return memory.generation(self.model, hardware, sequences, longest, self.prompt, nucleus=nucleus)


@lru_cache(KEPT)
def generation_batch(drawing: Drawing, hardware: Hardware, wanted: int) -> int:
    """Most sequences that can be generated together, at most `wanted`, halved until they fit.

    Raises:
        InvalidPlan: not even one fits.
    """
    batch = wanted
    while over := over_gib(drawing.memory(hardware, batch), hardware):
        if batch == 1:
            need = over + USABLE * hardware.memory_gib
            raise InvalidPlan(
                f"{drawing.model.name} needs {need:.1f} GiB to generate one sequence, and {_usable(hardware)}: take a "
                "smaller model, fewer max_completion_tokens, or a device with at least "
                f"{math.ceil(need / USABLE)} GiB.",
                param="hardware.memory_gib",
            )
        batch = max(1, batch // 2)
    return batch
