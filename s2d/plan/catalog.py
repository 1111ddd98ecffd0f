"""Published configurations of well-known models, so that planning for them needs no network.

Each row holds what the model's own `config.json` says. `family` names models that share tokenizer, chat template and
end-of-sequence tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Entry:
    family: str
    config: dict[str, Any]


def _qwen3(hidden: int, layers: int, heads: int, intermediate: int, *, tied: bool) -> Entry:
    return Entry(
        "qwen3",
        {
            "model_type": "qwen3",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": intermediate,
            "vocab_size": 151_936,
            "max_position_embeddings": 40_960,
            "tie_word_embeddings": tied,
            "attention_bias": False,
        },
    )


def _qwen25(hidden: int, layers: int, heads: int, kv_heads: int, intermediate: int, *, tied: bool) -> Entry:
    return Entry(
        "qwen2.5-instruct",
        {
            "model_type": "qwen2",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": intermediate,
            # From 7B on the embedding matrix is padded further; the tokenizer is the same.
            "vocab_size": 151_936 if tied else 152_064,
            "max_position_embeddings": 32_768,
            "tie_word_embeddings": tied,
        },
    )


def _llama(family: str, hidden: int, layers: int, heads: int, intermediate: int, *, head_dim: int, tied: bool) -> Entry:
    return Entry(
        family,
        {
            "model_type": "llama",
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": head_dim,
            "intermediate_size": intermediate,
            "vocab_size": 128_256,
            "max_position_embeddings": 131_072,
            "tie_word_embeddings": tied,
            "attention_bias": False,
            "mlp_bias": False,
        },
    )


#: Llama 3.1 and 3.3 render the same conversation alike; 3.2 writes the current date.
CATALOG: dict[str, Entry] = {
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, tied=True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, tied=True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, tied=True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12_288, tied=False),
    "Qwen/Qwen3-14B": _qwen3(5120, 40, 40, 17_408, tied=False),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25_600, tied=False),
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen25(896, 24, 14, 2, 4864, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen25(1536, 28, 12, 2, 8960, tied=True),
    "Qwen/Qwen2.5-3B-Instruct": _qwen25(2048, 36, 16, 2, 11_008, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(3584, 28, 28, 4, 18_944, tied=False),
    "Qwen/Qwen2.5-14B-Instruct": _qwen25(5120, 48, 40, 8, 13_824, tied=False),
    "Qwen/Qwen2.5-32B-Instruct": _qwen25(5120, 64, 40, 8, 27_648, tied=False),
    "Qwen/Qwen2.5-72B-Instruct": _qwen25(8192, 80, 64, 8, 29_568, tied=False),
    "meta-llama/Llama-3.1-8B-Instruct": _llama("llama-3.1", 4096, 32, 32, 14_336, head_dim=128, tied=False),
    "meta-llama/Llama-3.1-70B-Instruct": _llama("llama-3.1", 8192, 80, 64, 28_672, head_dim=128, tied=False),
    "meta-llama/Llama-3.3-70B-Instruct": _llama("llama-3.1", 8192, 80, 64, 28_672, head_dim=128, tied=False),
    "meta-llama/Llama-3.2-1B-Instruct": _llama("llama-3.2", 2048, 16, 32, 8192, head_dim=64, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": _llama("llama-3.2", 3072, 28, 24, 8192, head_dim=128, tied=True),
}
