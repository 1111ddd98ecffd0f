"""Parameter counts of decoder-only models, from their `config.json` alone.

Known are the families below; each is checked in the tests against the module that transformers builds from the same
config. A model type that is not listed is refused rather than guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from s2d.errors import InvalidPlan


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
class Biases:
    """Which linear layers carry a bias, and whether queries and keys are normalised per head."""

    qkv: bool
    output: bool
    mlp: bool
    qk_norm: bool


def _biases(model_type: str, config: Mapping[str, Any]) -> Biases:
    attention, mlp = bool(config.get("attention_bias", False)), bool(config.get("mlp_bias", False))
    match model_type:
        case "qwen3":
            return Biases(qkv=attention, output=attention, mlp=False, qk_norm=True)
        case "qwen2":
            return Biases(qkv=True, output=False, mlp=False, qk_norm=False)
        case "llama":
            return Biases(qkv=attention, output=attention, mlp=mlp, qk_norm=False)
        case "mistral":
            return Biases(qkv=False, output=False, mlp=False, qk_norm=False)
        case _:
            raise InvalidPlan(
                f"Models of type {model_type!r} are not supported: the planner knows qwen2, qwen3, llama and mistral."
            )


def read_shape(config: Mapping[str, Any]) -> Shape:
    """The shape that a `config.json` describes.

    Raises:
        InvalidPlan: an unknown model type, or a field that is missing or not a positive number.
    """
    biases = _biases(str(config.get("model_type")), config)
    hidden, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    kv_heads = _size(config, "num_key_value_heads") if config.get("num_key_value_heads") else heads
    head_dim = _size(config, "head_dim") if config.get("head_dim") else hidden // heads
    sizes = {
        "layers": _size(config, "num_hidden_layers"),
        "hidden_size": hidden,
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": _size(config, "intermediate_size"),
        "vocab_size": _size(config, "vocab_size"),
    }
    tied = bool(config.get("tie_word_embeddings", False))
    return Shape(
        **sizes,
        context=_size(config, "max_position_embeddings"),
        tied_embeddings=tied,
        parameters=_parameters(**sizes, tied=tied, biases=biases),
    )


def _size(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise InvalidPlan(f"config.json has no usable {name!r} (found {value!r}).")
    return value


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
    biases: Biases,
) -> int:
    """Parameters, tied embeddings counted once: embeddings, L x (attention, gated MLP, two norms), last norm, head."""
    query, key = heads * head_dim, kv_heads * head_dim
    attention = hidden_size * (query + 2 * key) + query * hidden_size
    attention += biases.qkv * (query + 2 * key) + biases.output * hidden_size + biases.qk_norm * 2 * head_dim
    mlp = 3 * hidden_size * intermediate_size + biases.mlp * (2 * intermediate_size + hidden_size)
    embeddings = vocab_size * hidden_size * (1 if tied else 2)
    return embeddings + layers * (attention + mlp + 2 * hidden_size) + hidden_size
