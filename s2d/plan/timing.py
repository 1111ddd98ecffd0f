"""How many tokens a stage handles and how long it takes: from FLOPs, bytes and fixed overheads.

FLOPs per token: generate 2N, score 2N, train 6N (4N with LoRA, 2N more with checkpointing). A decoding step reads all
weights and the key-value cache. Tiny models are bound by overhead, so each decoding step, micro-batch, optimizer step
and process start has a price.

What a machine reaches is its `Rates`: measured by `s2d probe`, else guessed from its datasheet, a fast and a slow case
with orders of magnitude between. The stages that a machine has run correct them, see `s2d.plan.calibration`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from s2d.plan.document import Model, Range
from s2d.plan.machine import Factor, Hardware, Rates
from s2d.plan.memory import BYTES, dtype_for, kv_bytes
from s2d.plan.names import StageKind

#: Completions end early or run to the limit: the part of `max_completion_tokens` that the mean takes.
COMPLETION_SHARE = (0.2, 1.0)
#: The cache of transformers is concatenated at each step: one read for attention, one read and one write for the copy.
CACHE_TRAFFIC = 3.0
#: AdamW in fp32 reads weight, gradient and both moments and writes three of them; clipping reads the gradient twice and
#: writes it. Bytes a parameter.
OPTIMIZER_TRAFFIC = 40.0
#: Around what a probe lets expect: 80 % of stages lie between the expected time divided by this and multiplied with it.
#: It held 18 of 18 real ones on a machine of two cores, see benchmarks/results/planner.md.
PROBED = Factor(middle=1.0, spread=1.6)
CERTAIN = Factor(middle=1.0, spread=1.0)


def guessed(hardware: Hardware) -> tuple[Rates, Rates]:
    """A fast and a slow case for a machine of which only the datasheet is known."""
    fast, slow = (_share(hardware, case) for case in _CASES[hardware.device])
    return fast, slow


#: Of the peak FLOP/s and bandwidth; seconds a decoding step, its layers, a micro-batch, its layers, a step, a start;
#: GB/s of loading.
_CASES = {
    "cpu": (
        (0.6, 0.8, 0.001, 0.0005, 0.002, 0.001, 0.02, 6.0, 1.0),
        (0.08, 0.25, 0.01, 0.003, 0.04, 0.01, 0.25, 25.0, 0.2),
    ),
    "cuda": (
        (0.45, 0.7, 0.001, 0.0005, 0.01, 0.001, 0.1, 15.0, 3.0),
        (0.12, 0.3, 0.003, 0.0015, 0.05, 0.004, 1.0, 60.0, 0.5),
    ),
}


def _share(hardware: Hardware, case: tuple[float, ...]) -> Rates:
    compute, bandwidth, decode_step, decode_layer, micro_batch, micro_layer, step, start, load = case
    return Rates(
        flops=compute * hardware.tflops * 1e12,
        bytes=bandwidth * hardware.bandwidth_gbs * 1e9,
        decode_step_s=decode_step,
        decode_layer_s=decode_layer,
        micro_batch_s=micro_batch,
        micro_layer_s=micro_layer,
        step_s=step,
        start_s=start,
        load_bytes=load * 1e9,
    )


@dataclass(frozen=True)
class Lengths:
    """Tokens of a sequence: the mean prompt, the longest completion, and the mean one where it is known."""

    prompt: float
    max_completion: int
    mean_completion: float | None = None

    def completion(self, share: float) -> float:
        if self.mean_completion is not None:
            return min(self.mean_completion, float(self.max_completion))
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
    lora: bool = False


@dataclass(frozen=True)
class StageWork:
    """What a stage does."""

    generate: tuple[Generate, ...] = ()
    train: tuple[Train, ...] = ()


@dataclass(frozen=True)
class Cost:
    tokens: Range
    seconds: Range


def cost(
    kind: StageKind, hardware: Hardware, lengths: Lengths, work: StageWork, longest: StageWork | None = None
) -> Cost:
    """Tokens and seconds of a stage: its process start and model loading, generation, and training.

    `longest` is the work of the slow case, where a stage may go on (the warmup).
    """
    longest = longest or work
    short, full = (lengths.completion(share) for share in COMPLETION_SHARE)

    def within(fast: Rates, slow: Rates, factor: Factor) -> tuple[float, float]:
        low, high = _Case(hardware, fast, lengths, short), _Case(hardware, slow, lengths, full)
        return low.seconds(work) * factor.middle / factor.spread, high.seconds(longest) * factor.middle * factor.spread

    known, seconds = hardware.calibration, (0.0, 0.0)
    if known is not None:
        seconds = within(known.rates, known.rates, known.factor(kind))
    if known is None or not known.probed:
        guess = within(*guessed(hardware), CERTAIN)
        # Some jobs must not make a machine that nobody has probed less known than it was.
        middle = math.sqrt(seconds[0] * seconds[1])
        if known is None:
            seconds = guess
        elif guess[0] <= middle <= guess[1]:
            seconds = max(seconds[0], guess[0]), min(seconds[1], guess[1])
    return Cost(
        tokens=Range(low=round(_tokens(work, lengths, short)), high=round(_tokens(longest, lengths, full))),
        seconds=Range(low=float(f"{seconds[0]:.3g}"), high=float(f"{seconds[1]:.3g}")),
    )


def expected_s(hardware: Hardware, rates: Rates, lengths: Lengths, completion: float, work: StageWork) -> float:
    """Seconds with these rates and a mean completion of so many tokens."""
    return _Case(hardware, rates, lengths, completion).seconds(work)


def _tokens(work: StageWork, lengths: Lengths, completion: float) -> float:
    """As reports count them: what is trained on, prompts included; of a stage that only draws its completions."""
    if work.train:
        return sum(part.steps * part.sequences * (lengths.prompt + completion) for part in work.train)
    return sum(part.sequences * completion for part in work.generate)


@dataclass(frozen=True)
class _Case:
    """One set of assumptions: what the machine reaches, and the mean completion."""

    hardware: Hardware
    rates: Rates
    lengths: Lengths
    completion: float

    def seconds(self, work: StageWork) -> float:
        models = {model for part in work.train for model in (part.model, *part.scorers)}
        models |= {part.model for part in work.generate}
        loading = sum(model.parameters for model in models) * self._size / self.rates.load_bytes
        working = sum(self._generation(part) for part in work.generate)
        working += sum(self._training(part) for part in work.train)
        return self.rates.start_s + loading + working

    def _generation(self, part: Generate) -> float:
        """Rounds x longest completion x the slower of computing and reading.

        A round ends with its longest completion: taken as twice the mean, at most the limit.
        """
        rounds = math.ceil(part.sequences / (part.batch * part.devices))
        model, longest = part.model, min(2 * self.completion, self.lengths.max_completion)
        half_full = kv_bytes(model, part.batch, 1, dtype_for(self.hardware)) * (self.lengths.prompt + longest / 2)
        read = (model.parameters * self._size + CACHE_TRAFFIC * half_full) / self.rates.bytes
        overhead = self.rates.decode_step_s + self.rates.decode_layer_s * model.layers
        decode = max(2.0 * model.parameters * part.batch / self.rates.flops, read) + overhead
        prefill = 2.0 * model.parameters * part.batch * self.lengths.prompt / self.rates.flops
        return rounds * (prefill + longest * decode)

    def _training(self, part: Train) -> float:
        per_token = (4.0 if part.lora else 6.0) + (2.0 if part.checkpoint else 0.0)
        per_token = per_token * part.model.parameters + sum(2.0 * model.parameters for model in part.scorers)
        on_device = part.sequences / self.hardware.devices
        computing = on_device * (self.lengths.prompt + self.completion) * per_token / self.rates.flops
        layers = part.model.layers + sum(model.layers for model in part.scorers) / 3
        micro_batch = self.rates.micro_batch_s + self.rates.micro_layer_s * layers
        # An adapter's optimizer has next to nothing to do.
        updating = 0.0 if part.lora else OPTIMIZER_TRAFFIC * part.model.parameters / self.rates.bytes
        return part.steps * (computing + on_device / part.micro_batch * micro_batch + updating + self.rates.step_s)

    @property
    def _size(self) -> int:
        return BYTES[dtype_for(self.hardware)]
