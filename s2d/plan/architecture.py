"""Parameter counts of decoder-only models, from their `config.json` alone.

Known are the types below; each is checked in the tests against the module that transformers builds from the same
config. A type that is not listed is refused rather than guessed, as are quantized weights, which cannot be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from s2d.errors import InvalidPlan

#: No published model comes near it, and all that is computed from sizes stays a number.
MAX_SIZE = 100_000_000


@dataclass(frozen=True)
class Shape:
    """The sizes that memory and time follow from. All in units of elements or layers."""

    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    context: int
    tied_embeddings: bool
    parameters: int


@dataclass(frozen=True)
class Kind:
    """What the layers of a model type have beside their matrices, and what its config class takes for unsaid."""

    qkv_bias: bool | None = None  # None: as `attention_bias` says
    output_bias: bool | None = None  # None: as `attention_bias` says
    mlp_bias: bool | None = False  # None: as `mlp_bias` says
    qk_norm: Literal["head", "width"] | None = None  # queries and keys normalised, per head or over all heads
    kv_heads: int | None = None  # None: as many as heads
    head_dim: int | None = None  # None: hidden / heads
    tied: bool = False


KINDS: dict[str, Kind] = {
    "llama": Kind(mlp_bias=None),
    "mistral": Kind(qkv_bias=False, output_bias=False, kv_heads=8),
    "olmo2": Kind(qk_norm="width"),
    "qwen2": Kind(qkv_bias=True, output_bias=False, kv_heads=32),
    "qwen3": Kind(qk_norm="head", kv_heads=32, head_dim=128),
    "smollm3": Kind(mlp_bias=None, kv_heads=4, tied=True),
}

#: Why well-known types are not among them, by a part of their names.
REFUSED = (
    (("moe", "mixtral", "gpt_oss", "deepseek"), "of its experts only some work at a time, and the formulas count all"),
    (("gemma",), "its layers keep caches of several lengths, and the formulas know one"),
    (("phi3",), "its fused projections change what LoRA adds"),
    (("vl", "vision"), "images are not trained on"),
)


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a `config.json` describes.

    Raises:
        InvalidPlan: an unknown model type, quantized weights, or a field that is missing or no usable number.
    """
    kind = _kind(config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads", _unsaid(config, "num_key_value_heads", kind.kv_heads, heads))
    head_dim = _size(config, "head_dim", _unsaid(config, "head_dim", kind.head_dim, hidden // heads))
    if heads % kv_heads:
        raise InvalidPlan(f"config.json has {heads} attention heads, which {kv_heads} key-value heads cannot share.")
    sizes = {
        "layers": _size(config, "num_hidden_layers"),
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _size(config, "intermediate_size"),
        "vocab_size": _size(config, "vocab_size"),
    }
    tied = bool(config.get("tie_word_embeddings", kind.tied))
    return Shape(
        **sizes,
        context=_size(config, "max_position_embeddings"),
        tied_embeddings=tied,
        parameters=_parameters(**sizes, tied=tied, extra=_extra(kind, config, sizes)),
    )


def _kind(config: Mapping[str, Any]) -> Kind:
    model_type = str(config.get("model_type"))
    if model_type not in KINDS:
        reason = next((f": {why}" for parts, why in REFUSED if any(part in model_type for part in parts)), "")
        raise InvalidPlan(
            f"Models of type {model_type[:80]!r} are not supported{reason}. The planner knows {', '.join(KINDS)}."
        )
    if config.get("quantization_config"):
        raise InvalidPlan(
            "The weights are quantized (`quantization_config`), which cannot be trained: take the model that they "
            "were made from."
        )
    return KINDS[model_type]


def _unsaid(config: Mapping[str, Any], name: str, default: int | None, derived: int) -> int:
    """What transformers takes where config.json does not name a field; null there is not the class's default."""
    return derived if default is None or name in config else default


def _size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
        raise InvalidPlan(f"config.json has no usable {name!r} (found {repr(value)[:80]}).")
    return value


def _extra(kind: Kind, config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    """Parameters of one layer beside its matrices and its two norms: biases, and the norms of queries and keys."""
    attention, mlp = bool(config.get("attention_bias")), bool(config.get("mlp_bias"))
    query, key = sizes["heads"] * sizes["head_dim"], sizes["kv_heads"] * sizes["head_dim"]
    norms = {None: 0, "head": 2 * sizes["head_dim"], "width": query + key}[kind.qk_norm]
    return (
        (attention if kind.qkv_bias is None else kind.qkv_bias) * (query + 2 * key)
        + (attention if kind.output_bias is None else kind.output_bias) * sizes["hidden_size"]
        + (mlp if kind.mlp_bias is None else kind.mlp_bias) * (2 * sizes["intermediate_size"] + sizes["hidden_size"])
        + norms
    )


def _parameters(
    *,
    layers: int,
    hidden_size: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    intermediate_size: int,
    vocab_size: int,
    tied: bool,
    extra: int,
) -> int:
    """Parameters, tied embeddings counted once: embeddings, L x (attention, gated MLP, two norms), last norm, head."""
    attention = 2 * hidden_size * (heads + kv_heads) * head_dim
    mlp = 3 * hidden_size * intermediate_size
    embeddings = vocab_size * hidden_size * (1 if tied else 2)
    return embeddings + layers * (attention + mlp + extra + 2 * hidden_size) + hidden_size
