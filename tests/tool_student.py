"""A tiny student that calls `add(a=2, b=3)`, whatever it is asked: its weights are written by hand, not trained."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

#: Hermes' form, as in Qwen's templates, in the pieces that are one token each.
PIECES = ('<tool_call>\n{"name": "add", "arguments": ', '{"a": 2, "b": 3}', "}\n</tool_call>")
CALL = "".join(PIECES)
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for call in m.tool_calls or [] %}"
    '<tool_call>\n{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n'
    "</tool_call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(path: Path, base: Path) -> Path:
    """The student in folder `path`, with the tokenizer of the random one in `base`, whose tokens are bytes."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    shutil.copytree(base, path)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(list(PIECES))
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    chain = tokenizer.convert_tokens_to_ids(["Ċ", *PIECES, "<|im_end|>"])
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(base, vocab_size=len(tokenizer), tie_word_embeddings=False))
    with torch.no_grad():
        # Nothing but the last token counts, and of tokens those of the chain alone, each of which leads to its next.
        for parameter in (model.model.embed_tokens.weight, model.lm_head.weight):
            parameter.zero_()
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        for place, (token, following) in enumerate(pairwise(chain)):
            model.model.embed_tokens.weight[token, place] = 1.0
            model.lm_head.weight[following, place] = 10.0
    model.save_pretrained(path)
    return path
