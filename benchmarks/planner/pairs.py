"""Models with random weights, a tokenizer that fills their vocabulary, and problems of a given length."""

from __future__ import annotations

import json
from itertools import islice, product
from pathlib import Path
from random import Random
from string import ascii_lowercase

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
)

from benchmarks.planner.cells import HEAD_DIM, Cell, Shape

SPECIAL = ("<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
TEMPLATE = (
    "{%- for m in messages -%}{{ '<|' + m['role'] + '|> ' + m['content'] + ' ' }}"
    "{%- if m['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
#: Of the vocabulary, those that problems are written in.
WORDS = 1000


def write_pair(cell: Cell, folder: Path, *, weights: bool = True) -> dict[str, str]:
    """Both models of a cell under `folder`; {"teacher": path, "student": path}.

    Args:
        weights: without them the files are those that a plan is made from.
    """
    return {role: str(_write(cell, getattr(cell, role), folder / role, weights)) for role in ("teacher", "student")}


def _write(cell: Cell, shape: Shape, folder: Path, weights: bool) -> Path:
    config = _config(cell, shape)
    config.save_pretrained(folder)
    GenerationConfig(eos_token_id=3, pad_token_id=0).save_pretrained(folder)
    _tokenizer(cell).save_pretrained(folder)
    if weights:
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    else:
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    return folder


def _config(cell: Cell, shape: Shape) -> PretrainedConfig:
    config: PretrainedConfig = AutoConfig.for_model(
        cell.family,
        architectures=[{"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[cell.family]],
        vocab_size=cell.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=cell.prompt + cell.completion,
        tie_word_embeddings=cell.tied,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=3,
        dtype="float32",
    )
    return config


def _words(count: int) -> list[str]:
    """The first words of four letters; with its space a word has the length of a usual token or little more."""
    return ["".join(letters) for letters in islice(product(ascii_lowercase, repeat=4), count)]


def _tokenizer(cell: Cell) -> PreTrainedTokenizerFast:
    entries = (*SPECIAL, *_words(cell.vocabulary - len(SPECIAL)))
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(entries)}, unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        additional_special_tokens=list(SPECIAL[1:3]),
        chat_template=TEMPLATE,
        padding_side="left",
    )


def write_problems(cell: Cell, path: Path) -> Path:
    """Labeled rows, then unlabeled ones; prompts are as long as the cell allows or one token shorter, so that
    batches of several are padded."""
    rng, words = Random(0), _words(WORDS)
    labeled = sum(cell.labels.values())
    with path.open("w") as file:
        for number in range(labeled + cell.unlabeled):
            # The template adds two tokens.
            length = cell.prompt - 2 - number % 2
            row = {"problem": " ".join(rng.choices(words, k=length)), "answer": "1"}
            file.write(json.dumps(row if number < labeled else {"problem": row["problem"]}) + "\n")
    return path
