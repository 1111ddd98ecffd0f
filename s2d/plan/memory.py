"""What a stage puts on one device, item by item, at the moment when it is most. Formulas and sources: docs/plan.md.

A stage goes through phases (drawing rollouts, the beginning and the end of backward, gate C2), and its peak is the
largest of them. All here is counted from the code that runs (TRL 1.16, transformers 5, PyTorch's autograd); what could
not be counted was measured on CPU (`benchmarks/planner`). On CUDA nothing was measured: its constants are counted alone
and its range is wider. Plain numbers, in bytes: a plan weighs hundreds of settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from s2d.plan.document import Lora, Model
from s2d.plan.machine import Hardware

Dtype = Literal["float32", "bfloat16"]

BYTES: dict[Dtype, int] = {"float32": 4, "bfloat16": 2}
GIB = 1 << 30
FP32 = 4
#: AdamW's two moments, fp32 (torch.optim.AdamW, fused: it makes no copies).
MOMENT_BYTES = 8
#: TRL projects logits on tiles of at most this many tokens and vocabulary entries (trl/kernels).
TILE_TOKENS, TILE_VOCAB = 4096, 32_768
#: Model types whose attention normalises queries and keys, which autograd keeps.
QK_NORM = ("qwen3", "olmo2")
#: Larger tensors have pages of their own, which leave no holes (DEFAULT_MMAP_THRESHOLD_MAX in mallopt(3)).
HEAP_BYTES = 32 << 20
#: The KL of gate C2 is taken for so many tokens at a time (`s2d.evaluate.kl.CHUNK`).
KL_CHUNK = 256
#: vLLM's own default, and TRL's for an engine beside the trainer (GRPOConfig.vllm_gpu_memory_utilization).
VLLM_ALONE, VLLM_BESIDE = 0.9, 0.3


class Memory(NamedTuple):
    """Bytes by what they are for."""

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    kv_cache: float = 0.0
    logits: float = 0.0
    teacher: float = 0.0
    rollout_engine: float = 0.0
    runtime: float = 0.0

    @property
    def total(self) -> float:
        return sum(self)


class Way(NamedTuple):
    """What of a model is trained, and whether the devices share its states."""

    lora: Lora | None = None
    sharded: bool = False


class Saved(NamedTuple):
    """Bytes that autograd keeps of one token in one layer, for each element of these widths.

    `hidden`: around both norms. `query`, `key`: projections, with norms. `attended`: keys and values as the attention
    takes them. `inner`: the gated MLP.
    """

    hidden: int
    query: int
    key: int
    attended: int
    inner: int


@dataclass(frozen=True)
class Constants:
    """How a device differs."""

    runtime: float
    """Context, libraries and what they keep, bytes; of a process that trains."""
    drawing: float
    """The same of a process that only generates: it has no trainer."""
    cache: float
    """The cache of transformers grows by concatenation: what the allocator holds, as a multiple of what is in it."""
    tiles: dict[str, float]
    """fp32 tiles of logits that exist at once, by loss."""
    heap: dict[tuple[bool, bool], float]
    """What the allocator holds for activations in small tensors, as a multiple of them, by (LoRA, checkpointing)."""
    left: float
    """Tensors as wide as the queries that a pass without gradient leaves as holes."""
    drawn: tuple[float, float]
    """Bytes for each logit of one position of one sequence: drawn from all, and from a nucleus."""
    widen: Memory
    """Each item's share that the range adds above it, and takes off below."""


def dtype_for(hardware: Hardware) -> Dtype:
    return "bfloat16" if hardware.device == "cuda" else "float32"


_WIDE = Memory(0.03, 0.05, 0.03, 0.4, 0.15, 0.5, 0.03, 0.0, 0.6)
_NARROW = Memory(0.08, 0.1, 0.08, 0.2, 0.3, 0.3, 0.08, 0.0, 0.15)
_HOLES = {(False, False): 1.2, (True, False): 1.9, (False, True): 2.8, (True, True): 7.0}
_DENSE = dict.fromkeys(_HOLES, 1.0)
CONSTANTS: dict[str, Constants] = {
    "cpu": Constants(
        0.56 * GIB, 0.41 * GIB, 1.1, {"logprob": 8.25, "divergence": 10.0}, _HOLES, 8.0, (12, 42), _NARROW
    ),
    "cuda": Constants(1.2 * GIB, 1.0 * GIB, 1.05, {"logprob": 1.0, "divergence": 2.5}, _DENSE, 0.0, (12, 42), _WIDE),
}


@dataclass(frozen=True)
class Work:
    """What one training stage puts on a device. Tokens are the longest: prompt plus completion."""

    model: Model
    frozen: tuple[Model, ...]  # teachers beside it
    sequences: int  # in one step on one device
    tokens: int
    prompt: int
    generates: bool
    reference: bool = False  # GRPO with a reference KL keeps a copy of the model
    measures_kl: bool = False  # gate C2 is judged in the stage
    vllm: bool = False


def training(work: Work, hardware: Hardware, way: Way, batch: int, checkpoint: bool) -> Memory:
    """The largest phase of a training stage with these settings."""
    there = states(work, hardware, way)
    phases = [*_updating(there, work, hardware, way, batch, checkpoint)]
    if work.generates and not work.vllm:
        phases += _drawing(there, work, hardware, work.sequences)
    if work.measures_kl:
        phases += (*_drawing(there, work, hardware, batch), _judging(there, work))
    return max(phases, key=sum)


def generation(model: Model, hardware: Hardware, sequences: int, tokens: int, prompt: int, *, nucleus: bool) -> Memory:
    """A stage that only generates, with transformers, `sequences` together."""
    weights = float(BYTES[dtype_for(hardware)] * model.parameters)
    there = Memory(weights=weights, runtime=CONSTANTS[hardware.device].drawing)
    return max(_generating(there, model, hardware, sequences, tokens, prompt, nucleus=nucleus), key=sum)


def _generating(
    there: Memory, model: Model, hardware: Hardware, sequences: int, tokens: int, prompt: int, *, nucleus: bool
) -> tuple[Memory, Memory]:
    """Reading the prompts, and drawing the last token with the cache at its longest."""
    constants = CONSTANTS[hardware.device]
    cache = constants.cache * kv_bytes(model, sequences, tokens, dtype_for(hardware))
    read = prefill_bytes(model, sequences, prompt, hardware)
    logits = constants.drawn[nucleus] * sequences * model.vocab_size
    return (
        there._replace(activations=read, kv_cache=cache * prompt / tokens),
        there._replace(kv_cache=cache, logits=logits),
    )


def engine(hardware: Hardware) -> Memory:
    """A stage that only generates, with vLLM: it takes its share of the device, whatever the model."""
    return Memory(rollout_engine=VLLM_ALONE * hardware.memory_gib * GIB)


def bounds(memory: Memory, hardware: Hardware) -> tuple[float, float]:
    """The range around an expected peak, bytes."""
    widen = CONSTANTS[hardware.device].widen
    slack = sum(value * share for value, share in zip(memory, widen, strict=True))
    return memory.total - slack, memory.total + slack


def states(work: Work, hardware: Hardware, way: Way) -> Memory:
    """What is there from the first step on, whatever is computed: weights, optimizer, other models, engine, runtime."""
    if way.sharded:
        return _shares(work, hardware)
    size, lora = BYTES[dtype_for(hardware)], way.lora
    parameters = trained(work.model, lora)
    weights = FP32 * parameters + (size * work.model.parameters if lora else 0)
    if lora is None and size < FP32:
        # Autocast keeps a half-precision copy of every matrix that it has used, until the pass is over.
        weights += size * (work.model.parameters - _embeddings(work.model))
    beside = size * sum(model.parameters for model in work.frozen)
    if work.reference and lora is None:
        beside += FP32 * work.model.parameters
    return Memory(
        weights=float(weights),
        # Several processes exchange gradients in buckets, which stay beside them (DistributedDataParallel).
        gradients=float(FP32 * parameters) if hardware.devices > 1 else 0.0,
        optimizer=float(MOMENT_BYTES * parameters),
        teacher=float(beside),
        rollout_engine=VLLM_BESIDE * hardware.memory_gib * GIB if work.vllm else 0.0,
        runtime=CONSTANTS[hardware.device].runtime,
    )


def _shares(work: Work, hardware: Hardware) -> Memory:
    """`states` with fp32 weights and optimizer shared among the devices.

    Between the first rollout of a step and the end of backward each device has all weights in the dtype that computes;
    a model that is never trained stays like that, beside its own share.
    """
    size, share, parameters = BYTES[dtype_for(hardware)], 1.0 / hardware.devices, work.model.parameters
    weights = parameters * (FP32 * share + size)
    teachers = size * (1.0 + share) * sum(model.parameters for model in work.frozen)
    return Memory(
        weights=weights,
        optimizer=MOMENT_BYTES * parameters * share,
        teacher=teachers + (weights if work.reference else 0.0),
        runtime=CONSTANTS[hardware.device].runtime,
    )


def _drawing(there: Memory, work: Work, hardware: Hardware, sequences: int) -> tuple[Memory, Memory]:
    """Rollouts with the model that trains; its gradients are gone by then."""
    return _generating(there, work.model, hardware, sequences, work.tokens, work.prompt, nucleus=False)


def _updating(
    there: Memory, work: Work, hardware: Hardware, way: Way, batch: int, checkpoint: bool
) -> Iterator[Memory]:
    """The teacher's pass, the beginning of backward with all activations, and its end with all gradients."""
    model, lora = work.model, way.lora
    # Shared gradients are exchanged after each micro-batch, so that no device ever has all of them.
    whole = FP32 * trained(model, lora) / (hardware.devices if way.sharded else 1)
    # The head's gradient is there first; a tied embedding adds its own to it at the end.
    head = 0.0 if lora else float(FP32 * _embeddings(model))
    tied = head if model.tied_embeddings else 0.0
    before = there.gradients + (whole if batch < work.sequences else 0.0)
    kept = activation_bytes(model, batch, work.tokens, hardware, lora is not None, checkpoint)
    for teacher in work.frozen:
        read = prefill_bytes(teacher, batch, work.tokens, hardware)
        yield there._replace(gradients=before, activations=kept + read)
    yield there._replace(gradients=before + head, activations=kept, logits=tile_bytes(work, hardware, batch))
    last = 2 * tied if batch < work.sequences else tied
    if way.sharded:
        # Those of the embeddings are exchanged together.
        last = head if model.tied_embeddings else 2 * head
    yield there._replace(gradients=there.gradients + whole + last)


def _judging(there: Memory, work: Work) -> Memory:
    """Gate C2: the logits of one rollout under both models, and the distributions of a part of it."""
    completion, vocabulary = work.tokens - work.prompt, work.model.vocab_size
    logits = FP32 * vocabulary * (2 * completion + 8 * min(completion, KL_CHUNK))
    return there._replace(logits=float(logits))


def trained(model: Model, lora: Lora | None) -> int:
    """Parameters that get a gradient."""
    return lora_parameters(model, lora) if lora else model.parameters


def _embeddings(model: Model) -> int:
    return model.vocab_size * model.hidden_size


def kv_bytes(model: Model, sequences: int, tokens: int, dtype: Dtype) -> float:
    """Key-value cache: 2 x layers x kv-heads x head-dim x bytes, for each token of each sequence."""
    return 2.0 * model.layers * model.kv_heads * model.head_dim * BYTES[dtype] * sequences * tokens


def lora_parameters(model: Model, lora: Lora) -> int:
    """Adapter parameters on all linear layers: rank x (inputs + outputs) of each."""
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * (model.hidden_size + query) + 2 * (model.hidden_size + key)
    mlp = 3 * (model.hidden_size + model.intermediate_size)
    return lora.rank * model.layers * (attention + mlp)


def prefill_bytes(model: Model, sequences: int, prompt: int, hardware: Hardware) -> float:
    """Reading the prompts without gradient: one layer's hidden states and gated MLP, and the mask in both its forms.

    On CPU the holes that the attention's queries, keys and values have left stay beside them.
    """
    size, tokens, query = BYTES[dtype_for(hardware)], sequences * prompt, model.heads * model.head_dim
    elements = 3.0 * model.hidden_size + 3.0 * model.intermediate_size
    elements += CONSTANTS[hardware.device].left * query * min(1.0, HEAP_BYTES / (tokens * query * size))
    return tokens * (size * elements + (size + 1) * prompt)


def tile_bytes(work: Work, hardware: Hardware, batch: int) -> float:
    """The tiles of logits that one loss has at once, fp32."""
    completion, model = work.tokens - work.prompt, work.model
    count = CONSTANTS[hardware.device].tiles["divergence" if work.frozen else "logprob"]
    # Without Triton TRL scores prompts too where it takes log-probabilities.
    scored = work.tokens if hardware.device == "cpu" and not work.frozen else completion
    wide = TILE_VOCAB if hardware.device == "cuda" else min(model.vocab_size, TILE_VOCAB)
    return count * FP32 * min(batch * scored, TILE_TOKENS) * wide


def saved(model: Model, dtype: Dtype, *, lora: bool) -> Saved:
    """Counted from the layer's code, see docs/plan.md: norms in fp32, frozen weights keep no input of their own."""
    normed = model.model_type in QK_NORM
    if dtype == "float32":
        if lora:
            return Saved(hidden=16, query=12 if normed else 8, key=4 if normed else 0, attended=8, inner=16)
        return Saved(hidden=24, query=16 if normed else 8, key=8 if normed else 0, attended=8, inner=16)
    if lora:
        return Saved(hidden=18, query=10 if normed else 6, key=4 if normed else 0, attended=4, inner=8)
    return Saved(hidden=20, query=10 if normed else 4, key=6 if normed else 0, attended=4, inner=8)


def activation_bytes(model: Model, batch: int, tokens: int, hardware: Hardware, lora: bool, checkpoint: bool) -> float:
    """What backward needs of `batch` sequences: all layers or, with checkpointing, one layer and all inputs.

    Beside them the gradients that flow through one layer's MLP.
    """
    dtype = dtype_for(hardware)
    size, kept = BYTES[dtype], saved(model, dtype, lora=lora)
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    # Under a mask the keys and values of grouped heads are repeated for each query head.
    layer = kept.hidden * model.hidden_size + kept.query * query + kept.key * key + kept.attended * query
    # PyTorch makes the mask anew for each layer, as numbers, and keeps it.
    layer += kept.inner * model.intermediate_size + size * tokens
    flowing = size * (3 * model.intermediate_size + 2 * model.hidden_size)
    # The embedding's output and the last norm.
    ends = 4 * FP32 * model.hidden_size + tokens
    inputs = (FP32 if dtype == "float32" or not lora else size) * model.hidden_size * model.layers
    held = layer + flowing if checkpoint else model.layers * layer
    counted = inputs + held + ends if checkpoint else held + flowing + ends
    largest = batch * tokens * model.intermediate_size * size
    holes = (CONSTANTS[hardware.device].heap[lora, checkpoint] - 1.0) * held * min(1.0, HEAP_BYTES / largest)
    return float(batch * tokens * (counted + holes))
