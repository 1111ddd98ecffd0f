"""How much memory a stage needs on one device, and the settings that make it fit.

Formulas (docs/plan.md): full fine-tuning holds 16 bytes a parameter (fp32 weights, gradients, two AdamW moments), LoRA
the frozen weights and 16 bytes an adapter parameter; activations follow from the layer's shapes; the key-value cache
holds all sequences that a device generates together; logits exist only as tiles. Every device holds the whole model.
The estimates are ranges; what is chosen fits the upper end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from s2d.errors import InvalidPlan
from s2d.plan.document import Hardware, Lora, Model, Range
from s2d.plan.hardware import GIB

Dtype = Literal["float32", "bfloat16"]

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
#: fp32 weights, gradients and both AdamW moments.
STATE_BYTES = 16
#: The part of a device that a plan fills; the rest is the allocator's.
USABLE = 0.92
#: Context, libraries, kernels: low and high, GiB.
RUNTIME_GIB: dict[str, tuple[float, float]] = {"cpu": (0.6, 1.2), "cuda": (0.8, 2.0)}
#: TRL projects logits on tiles of at most this many tokens and vocabulary entries, fp32.
TILE_TOKENS, TILE_VOCAB = 4096, 32_768
TILES_LOW, TILES_HIGH = 2, 8
#: Saved activations beside the counted ones: upcast norms, masks, fragmentation.
ACTIVATION_SLACK = 1.7
KV_SLACK = 1.2
MAX_MICRO_BATCH = 256
#: Without checkpointing at fewer sequences than this, recomputing is the better use of memory.
WORTH_NO_CHECKPOINTING = 4


def dtype_for(hardware: Hardware) -> Dtype:
    return "bfloat16" if hardware.device == "cuda" else "float32"


@dataclass(frozen=True)
class Work:
    """What one training stage puts on a device. Tokens are the longest: prompt plus completion."""

    model: Model
    frozen: tuple[Model, ...]  # teachers beside it
    sequences: int  # in one step on one device
    tokens: int
    generates: bool


@dataclass(frozen=True)
class Fit:
    """Settings of a training stage, and the memory per device that they are expected to take."""

    per_device_batch_size: int
    gradient_checkpointing: bool
    lora: Lora | None
    memory: Range


def fit(
    work: Work,
    hardware: Hardware,
    loras: tuple[Lora | None, ...],
    batch_size: int | None = None,
    checkpointing: bool | None = None,
) -> Fit | None:
    """The first settings that fit: full before LoRA, large batches, checkpointing only where it is needed.

    `loras` are the allowed choices in order; `batch_size` and `checkpointing` fix a setting. None if nothing fits.
    """
    limit = USABLE * hardware.memory_gib
    for lora in loras:
        for checkpoint in (False, True) if checkpointing is None else (checkpointing,):
            for batch in _batches(work.sequences) if batch_size is None else (batch_size,):
                spare = checkpointing is None and not checkpoint and batch < min(WORTH_NO_CHECKPOINTING, work.sequences)
                memory = training_memory(work, hardware, lora, batch, checkpoint)
                if memory.high <= limit and not (spare and batch_size is None):
                    return Fit(batch, checkpoint, lora, memory)
    return None


def _batches(sequences: int) -> Iterator[int]:
    """Divisors of `sequences`, largest first."""
    return (n for n in range(min(sequences, MAX_MICRO_BATCH), 0, -1) if sequences % n == 0)


def refuse(
    work: Work, hardware: Hardware, loras: tuple[Lora | None, ...], stage: str, batch: int | None
) -> InvalidPlan:
    """The error for a stage that fits in no way: by how much it misses, and what would do."""
    least = training_memory(work, hardware, loras[-1], batch or 1, checkpoint=True).high
    states = _frozen_bytes(work, hardware, loras[-1]) / GIB
    advice = ["a smaller model", "fewer max_completion_tokens", "fewer sequences in a step"]
    if loras[-1] is None:
        advice.insert(0, "lora")
    return InvalidPlan(
        f"{stage} needs about {least:.1f} GiB per device ({states:.1f} GiB of it for weights and optimizer state) "
        f"and {_usable(hardware)}: {least - USABLE * hardware.memory_gib:.1f} GiB too much. What would help: "
        f"{', '.join(advice)}, or a device with at least {math.ceil(least / USABLE)} GiB.",
        param=f"stages.{stage}",
    )


def _usable(hardware: Hardware) -> str:
    return f"{USABLE * hardware.memory_gib:.1f} of {hardware.memory_gib:.1f} GiB can be used"


def training_memory(work: Work, hardware: Hardware, lora: Lora | None, batch: int, checkpoint: bool) -> Range:
    """Peak per device, GiB: states, and the larger of generating a step's rollouts and of one forward and backward."""
    dtype = dtype_for(hardware)
    cache = kv_bytes(work.model, work.sequences, work.tokens, dtype) if work.generates else 0.0
    activations = activation_bytes(work.model, batch * work.tokens, dtype, checkpoint)
    tile = tile_bytes(work.model, batch * work.tokens)
    states = _frozen_bytes(work, hardware, lora)
    return _total(
        hardware,
        states + max(cache, activations + TILES_LOW * tile),
        states * 1.03 + max(KV_SLACK * cache, ACTIVATION_SLACK * activations + TILES_HIGH * tile),
    )


def state_gib(model: Model) -> float:
    """Weights, gradients and optimizer of full fine-tuning, GiB."""
    return STATE_BYTES * model.parameters / GIB


def generation_memory(model: Model, hardware: Hardware, sequences: int, tokens: int) -> Range:
    """Peak per device, GiB, of generating `sequences` together."""
    dtype = dtype_for(hardware)
    weights, cache = model.parameters * BYTES[dtype], kv_bytes(model, sequences, tokens, dtype)
    return _total(hardware, weights + cache, weights * 1.03 + KV_SLACK * cache)


def generation_batch(model: Model, hardware: Hardware, tokens: int, wanted: int) -> int:
    """Most sequences that can be generated together, at most `wanted`, halved until they fit.

    Raises:
        InvalidPlan: not even one fits.
    """
    batch = wanted
    while generation_memory(model, hardware, batch, tokens).high > USABLE * hardware.memory_gib:
        if batch == 1:
            need = generation_memory(model, hardware, 1, tokens).high
            raise InvalidPlan(
                f"{model.name} needs {need:.1f} GiB to generate one sequence, and {_usable(hardware)}: take a smaller "
                f"model, fewer max_completion_tokens, or a device with at least {math.ceil(need / USABLE)} GiB.",
                param="hardware.memory_gib",
            )
        batch = max(1, batch // 2)
    return batch


def kv_bytes(model: Model, sequences: int, tokens: int, dtype: Dtype) -> float:
    """Key-value cache: 2 x layers x kv-heads x head-dim x bytes, for each token of each sequence."""
    return 2.0 * model.layers * model.kv_heads * model.head_dim * BYTES[dtype] * sequences * tokens


def lora_parameters(model: Model, lora: Lora) -> int:
    """Adapter parameters on all linear layers: rank x (inputs + outputs) of each."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * (model.hidden_size + query) + 2 * (model.hidden_size + key)
    mlp = 3 * (model.hidden_size + model.intermediate_size)
    return lora.rank * model.layers * (attention + mlp)


def activation_bytes(model: Model, tokens: int, dtype: Dtype, checkpoint: bool) -> float:
    """What backward needs: a layer's saved elements, for all layers or, with checkpointing, one layer and all inputs.

    A layer saves the two norms' inputs and outputs and the residual (5 hidden), queries before and after norm and
    rotation and the attention output (3 query), keys and values alike (4 key), and the gated MLP (4 intermediate).
    """
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    layer = 5 * model.hidden_size + 3 * query + 4 * key + 4 * model.intermediate_size
    elements = model.layers * model.hidden_size + layer if checkpoint else model.layers * layer
    return float(elements * tokens * BYTES[dtype])


def tile_bytes(model: Model, tokens: int) -> float:
    """One fp32 tile of logits."""
    return 4.0 * min(tokens, TILE_TOKENS) * min(model.vocab_size, TILE_VOCAB)


def _frozen_bytes(work: Work, hardware: Hardware, lora: Lora | None) -> float:
    """Weights, gradients and optimizer of the trained model, and the weights of the teachers beside it."""
    size = BYTES[dtype_for(hardware)]
    teachers = sum(model.parameters for model in work.frozen) * size
    if lora is None:
        return float(STATE_BYTES * work.model.parameters + teachers)
    return float(size * work.model.parameters + STATE_BYTES * lora_parameters(work.model, lora) + teachers)


def _total(hardware: Hardware, low: float, high: float) -> Range:
    runtime = RUNTIME_GIB[hardware.device]
    return Range(low=round(runtime[0] + low / GIB, 3), high=round(runtime[1] + high / GIB, 3))
