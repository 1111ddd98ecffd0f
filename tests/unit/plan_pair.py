"""A tiny model pair on disk, as the planner reads one: config and tokenizer files, and weights that hold nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2d.plan.machine import Hardware
from s2d.plan.models import ModelPolicy

TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CPU = Hardware(device="cpu", devices=1, memory_gib=8, cpu_threads=2, tflops=0.2, bandwidth_gbs=15)


def config(hidden: int, layers: int, heads: int, intermediate: int, **changes: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": hidden // heads,
        "intermediate_size": intermediate,
        "vocab_size": 264,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        **changes,
    }


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def write_model(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True)
    write(folder, "config.json", settings)
    tokens = {chr(33 + i): i for i in range(60)}
    added = [{"id": 60, "content": "<pad>"}, {"id": 61, "content": "<end>"}]
    write(folder, "tokenizer.json", {"model": {"type": "BPE", "vocab": tokens, "merges": []}, "added_tokens": added})
    write(folder, "tokenizer_config.json", {"eos_token": "<end>", "pad_token": {"content": "<pad>"}})
    write(folder, "generation_config.json", {"eos_token_id": 61, "pad_token_id": 60})
    write(folder, "chat_template.jinja", TEMPLATE)
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def write_pair(root: Path) -> tuple[Path, Path]:
    """A teacher of about 0.8M and a student of about 57k parameters."""
    return (
        write_model(root / "teacher", config(128, 4, 4, 384)),
        write_model(root / "student", config(48, 2, 4, 96)),
    )


def policy(root: Path) -> ModelPolicy:
    return ModelPolicy(roots=(root,), allow_hub=False)
