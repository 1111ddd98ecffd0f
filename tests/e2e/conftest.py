"""A student small enough for every engine: random weights of a real architecture, one token per byte."""

from __future__ import annotations

from pathlib import Path

import pytest

CONTEXT = 256
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def random_student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's name holds an "@", which transformers' server takes for a revision."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("students") / "tiny@1"
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(special + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {"eos_token": special[1], "pad_token": special[2], "additional_special_tokens": special[:1]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **names)
    fast.save_pretrained(path)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": CONTEXT}
    heads = {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 32}
    ids = {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 2}
    Qwen3ForCausalLM(Qwen3Config(vocab_size=len(vocab), **sizes, **heads, **ids)).save_pretrained(path)
    return path
