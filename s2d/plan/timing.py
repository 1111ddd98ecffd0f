"""How many tokens a stage handles and how long it takes: from FLOPs, bytes and fixed overheads.

FLOPs per token: generate 2N, score 2N, train 6N (8N with checkpointing). A decoding step reads all weights and the
key-value cache. Tiny models are bound by overhead, so each layer of a decoding step, each micro-batch and each process
start has a price. The efficiencies are guesses from published runs and one small CPU probe and not calibrated on the
machine at hand: read the ranges as orders of magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from s2d.plan.document import Hardware, Model, Range
from s2d.plan.sizing import BYTES, dtype_for, kv_bytes

#: Completions end early or run to the limit: the part of `max_completion_tokens` that the mean takes.
COMPLETION_SHARE = (0.2, 1.0)
#: The cache of transformers is concatenated at each step: one read for attention, one read and one write for the copy.
CACHE_TRAFFIC = 3.0


class Rates(NamedTuple):
    """What is reached of the peaks, and overheads in seconds; a fast and a slow case."""

    compute: float
    bandwidth: float
    decode_layer: float
    micro_batch: float
    step: float
    start: float
    load_gbs: float


FAST = {
    "cpu": Rates(0.6, 0.8, 0.0005, 0.01, 0.02, 6.0, 1.0),
    "cuda": Rates(0.45, 0.7, 0.0005, 0.03, 0.1, 15.0, 3.0),
}
SLOW = {
    "cpu": Rates(0.08, 0.25, 0.003, 0.06, 0.25, 25.0, 0.2),
    "cuda": Rates(0.12, 0.3, 0.0015, 0.15, 1.0, 60.0, 0.5),
}


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence: the mean prompt, and the longest completion."""

    prompt: float
    max_completion: int

    def completion(self, share: float) -> float:
        return max(1.0, share * self.max_completion)


@dataclass(frozen=True)
class Generate:
    """`sequences` completions in all, `batch` at a time on one of `devices` devices."""

    model: Model
    sequences: float
    batch: int
    devices: int


@dataclass(frozen=True)
class Train:
    """`steps` optimizer steps of `sequences` sequences; `scorers` read every sequence once, forward only."""

    model: Model
    steps: float
    sequences: int
    micro_batch: int
    checkpoint: bool
    scorers: tuple[Model, ...] = ()


@dataclass(frozen=True)
class Cost:
    tokens: Range
    seconds: Range


def cost(
    hardware: Hardware,
    lengths: Lengths,
    generate: tuple[Generate, ...],
    train: tuple[Train, ...] = (),
    longest: tuple[Train, ...] | None = None,
) -> Cost:
    """Tokens and seconds of a stage: its process start and model loading, generation, and training.

    `longest` is the training of the slow case, where a stage may go on (the warmup).
    """
    name, (short, full) = hardware.device, COMPLETION_SHARE
    low = _one_case(hardware, FAST[name], lengths, short, generate, train)
    high = _one_case(hardware, SLOW[name], lengths, full, generate, train if longest is None else longest)
    return Cost(
        tokens=Range(low=round(low[0]), high=round(high[0])),
        seconds=Range(low=float(f"{low[1]:.3g}"), high=float(f"{high[1]:.3g}")),
    )


def _one_case(
    hardware: Hardware,
    rates: Rates,
    lengths: Lengths,
    share: float,
    generate: tuple[Generate, ...],
    train: tuple[Train, ...],
) -> tuple[float, float]:
    completion = lengths.completion(share)
    tokens = sum(part.sequences * completion for part in generate)
    tokens += sum(part.steps * part.sequences * (lengths.prompt + completion) for part in train)
    models = {model for part in train for model in (part.model, *part.scorers)} | {part.model for part in generate}
    size = BYTES[dtype_for(hardware)]
    loading = sum(model.parameters for model in models) * size / (rates.load_gbs * 1e9)
    seconds = rates.start + loading
    seconds += sum(_generation(part, hardware, rates, lengths, completion) for part in generate)
    return tokens, seconds + sum(_training(part, hardware, rates, lengths.prompt + completion) for part in train)


def _generation(part: Generate, hardware: Hardware, rates: Rates, lengths: Lengths, completion: float) -> float:
    """Rounds x longest completion x the slower of computing and reading.

    A round ends with its longest completion: taken as twice the mean, at most the limit.
    """
    rounds = math.ceil(part.sequences / (part.batch * part.devices))
    model, longest = part.model, min(2 * completion, lengths.max_completion)
    flops, bandwidth = _reached(hardware, rates)
    half_full = kv_bytes(model, part.batch, 1, dtype_for(hardware)) * (lengths.prompt + longest / 2)
    read = model.parameters * BYTES[dtype_for(hardware)] + CACHE_TRAFFIC * half_full
    decode = max(2.0 * model.parameters * part.batch / flops, read / bandwidth) + rates.decode_layer * model.layers
    prefill = 2.0 * model.parameters * part.batch * lengths.prompt / flops
    return rounds * (prefill + longest * decode)


def _training(part: Train, hardware: Hardware, rates: Rates, tokens: float) -> float:
    flops, _ = _reached(hardware, rates)
    per_token = (8.0 if part.checkpoint else 6.0) * part.model.parameters
    per_token += sum(2.0 * model.parameters for model in part.scorers)
    on_device = part.sequences / hardware.devices
    micro_batches = on_device / part.micro_batch
    return part.steps * (on_device * tokens * per_token / flops + micro_batches * rates.micro_batch + rates.step)


def _reached(hardware: Hardware, rates: Rates) -> tuple[float, float]:
    """FLOP/s and bytes/s."""
    return rates.compute * hardware.tflops * 1e12, rates.bandwidth * hardware.bandwidth_gbs * 1e9
