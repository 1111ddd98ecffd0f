"""Published configurations of well-known models, so that planning for them needs no network.

Each row holds what the model's own `config.json` says. `family` names models that share tokenizer, end-of-sequence
tokens and what the chat template makes of a conversation; base and instruct models of one line differ in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Entry:
    family: str
    config: dict[str, Any]


class Size(NamedTuple):
    """What one size of a line has in all of its models."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = False
    head_dim: int | None = None  # hidden / heads, and not named in config.json


QWEN3 = {
    "0.6B": Size(1024, 28, 16, 8, 3072, 151_936, tied=True, head_dim=128),
    "1.7B": Size(2048, 28, 16, 8, 6144, 151_936, tied=True, head_dim=128),
    "4B": Size(2560, 36, 32, 8, 9728, 151_936, tied=True, head_dim=128),
    "8B": Size(4096, 36, 32, 8, 12_288, 151_936, head_dim=128),
    "14B": Size(5120, 40, 40, 8, 17_408, 151_936, head_dim=128),
    "32B": Size(5120, 64, 64, 8, 25_600, 151_936, head_dim=128),
}
#: From 7B on the embedding matrix is padded further; the tokenizer is the same.
QWEN25 = {
    "0.5B": Size(896, 24, 14, 2, 4864, 151_936, tied=True),
    "1.5B": Size(1536, 28, 12, 2, 8960, 151_936, tied=True),
    "3B": Size(2048, 36, 16, 2, 11_008, 151_936, tied=True),
    "7B": Size(3584, 28, 28, 4, 18_944, 152_064),
    "14B": Size(5120, 48, 40, 8, 13_824, 152_064),
    "32B": Size(5120, 64, 40, 8, 27_648, 152_064),
    "72B": Size(8192, 80, 64, 8, 29_568, 152_064),
}
#: DeepSeek's 1.5B has a head of its own.
R1_QWEN = {"1.5B": QWEN25["1.5B"]._replace(tied=False), **{size: QWEN25[size] for size in ("7B", "14B", "32B")}}
LLAMA3 = {
    "1B": Size(2048, 16, 32, 8, 8192, 128_256, tied=True, head_dim=64),
    "3B": Size(3072, 28, 24, 8, 8192, 128_256, tied=True, head_dim=128),
    "8B": Size(4096, 32, 32, 8, 14_336, 128_256, head_dim=128),
    "70B": Size(8192, 80, 64, 8, 28_672, 128_256, head_dim=128),
}
MISTRAL = {"7B": Size(4096, 32, 32, 8, 14_336, 32_768)}
SMOLLM2 = {
    "135M": Size(576, 30, 9, 3, 1536, 49_152, tied=True),
    "360M": Size(960, 32, 15, 5, 2560, 49_152, tied=True),
    "1.7B": Size(2048, 24, 32, 32, 8192, 49_152, tied=True),
}
SMOLLM3 = {"3B": Size(2048, 36, 16, 4, 11_008, 128_256, tied=True)}
OLMO2 = {
    "0425-1B": Size(2048, 16, 16, 16, 8192, 100_352),
    "1124-7B": Size(4096, 32, 32, 32, 11_008, 100_352),
    "1124-13B": Size(5120, 40, 40, 40, 13_824, 100_352),
    "0325-32B": Size(5120, 64, 40, 8, 27_648, 100_352),
}

#: What else config.json says of the layers of a type.
_BIASES: dict[str, dict[str, bool]] = {
    "qwen3": {"attention_bias": False},
    "llama": {"attention_bias": False, "mlp_bias": False},
    "olmo2": {"attention_bias": False},
    "smollm3": {"attention_bias": False, "mlp_bias": False},
}


def _models(
    family: str, model_type: str, sizes: Mapping[str, Size], name: str, context: int, only: Iterable[str] | None = None
) -> dict[str, Entry]:
    """The models of a family; `{}` in `name` stands for the size."""
    chosen = sizes if only is None else {size: sizes[size] for size in only}
    return {name.format(size): Entry(family, _config(model_type, row, context)) for size, row in chosen.items()}


def _config(model_type: str, size: Size, context: int) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        **({} if size.head_dim is None else {"head_dim": size.head_dim}),
        "intermediate_size": size.intermediate,
        "vocab_size": size.vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": size.tied,
        **_BIASES.get(model_type, {}),
    }


_SHORT_QWEN25, _LONG_QWEN25 = ("0.5B", "3B"), ("7B", "14B", "32B", "72B")
_CODER = ("0.5B", "1.5B", "3B", "7B", "14B", "32B")
_MATH = ("1.5B", "7B", "72B")
_R1_LLAMA = ("8B", "70B")

#: Instruct-2507 renders a conversation as Qwen3 does; Thinking-2507 opens its answer. Llama 3.1 and 3.3 render alike;
#: 3.2 writes the current date. Llama 3 has other special tokens.
CATALOG: dict[str, Entry] = {
    **_models("qwen3", "qwen3", QWEN3, "Qwen/Qwen3-{}", 40_960),
    **_models("qwen3", "qwen3", QWEN3, "Qwen/Qwen3-{}-Instruct-2507", 262_144, only=("4B",)),
    **_models("qwen3-thinking-2507", "qwen3", QWEN3, "Qwen/Qwen3-{}-Thinking-2507", 262_144, only=("4B",)),
    **_models("qwen3-base", "qwen3", QWEN3, "Qwen/Qwen3-{}-Base", 32_768, only=("0.6B", "1.7B", "4B", "8B", "14B")),
    **_models("qwen2.5-instruct", "qwen2", QWEN25, "Qwen/Qwen2.5-{}-Instruct", 32_768),
    **_models("qwen2.5-base", "qwen2", QWEN25, "Qwen/Qwen2.5-{}", 32_768, only=_SHORT_QWEN25),
    **_models("qwen2.5-base", "qwen2", QWEN25, "Qwen/Qwen2.5-{}", 131_072, only=_LONG_QWEN25),
    **_models("qwen2.5-math-instruct", "qwen2", QWEN25, "Qwen/Qwen2.5-Math-{}-Instruct", 4096, only=_MATH),
    **_models("qwen2.5-math-base", "qwen2", QWEN25, "Qwen/Qwen2.5-Math-{}", 4096, only=_MATH),
    **_models("qwen2.5-coder-instruct", "qwen2", QWEN25, "Qwen/Qwen2.5-Coder-{}-Instruct", 32_768, only=_CODER),
    **_models("qwen2.5-coder-base", "qwen2", QWEN25, "Qwen/Qwen2.5-Coder-{}", 32_768, only=_CODER),
    **_models("deepseek-r1-qwen", "qwen2", R1_QWEN, "deepseek-ai/DeepSeek-R1-Distill-Qwen-{}", 131_072),
    **_models(
        "deepseek-r1-llama", "llama", LLAMA3, "deepseek-ai/DeepSeek-R1-Distill-Llama-{}", 131_072, only=_R1_LLAMA
    ),
    **_models("llama-3", "llama", LLAMA3, "meta-llama/Meta-Llama-3-{}-Instruct", 8192, only=("8B", "70B")),
    **_models("llama-3-base", "llama", LLAMA3, "meta-llama/Meta-Llama-3-{}", 8192, only=("8B", "70B")),
    **_models("llama-3.1", "llama", LLAMA3, "meta-llama/Llama-3.1-{}-Instruct", 131_072, only=("8B", "70B")),
    **_models("llama-3.1", "llama", LLAMA3, "meta-llama/Llama-3.3-{}-Instruct", 131_072, only=("70B",)),
    **_models("llama-3.2", "llama", LLAMA3, "meta-llama/Llama-3.2-{}-Instruct", 131_072, only=("1B", "3B")),
    **_models("llama-3.1-base", "llama", LLAMA3, "meta-llama/Llama-3.1-{}", 131_072, only=("8B", "70B")),
    **_models("llama-3.1-base", "llama", LLAMA3, "meta-llama/Llama-3.2-{}", 131_072, only=("1B", "3B")),
    **_models("mistral-v0.3-instruct", "mistral", MISTRAL, "mistralai/Mistral-{}-Instruct-v0.3", 32_768),
    **_models("mistral-v0.3-base", "mistral", MISTRAL, "mistralai/Mistral-{}-v0.3", 32_768),
    **_models("smollm2-instruct", "llama", SMOLLM2, "HuggingFaceTB/SmolLM2-{}-Instruct", 8192),
    **_models("smollm2-base", "llama", SMOLLM2, "HuggingFaceTB/SmolLM2-{}", 8192),
    **_models("smollm3", "smollm3", SMOLLM3, "HuggingFaceTB/SmolLM3-{}", 65_536),
    **_models("olmo-2-instruct", "olmo2", OLMO2, "allenai/OLMo-2-{}-Instruct", 4096),
    **_models("olmo-2-base", "olmo2", OLMO2, "allenai/OLMo-2-{}", 4096),
}


def catalog_name(name: str) -> str | None:
    """The catalog's spelling of a hub id, which the hub reads in any case; None for a model that it has not."""
    return _SPELLING.get(name.casefold())


_SPELLING = {name.casefold(): name for name in CATALOG}
