"""The demo pair's tokenizer: 256 bytes, five special tokens and `\\boxed{`, with a chat template.

Every text is tokenised and decoded without loss. The template writes one role token before each message and
`<|end|>`, the end of sequence, after each answer:

    <|user|>4*9+3*0*3*9=<|assistant|>;6;9;0;0;0\\boxed{0}<|end|>
"""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
BOXED = "\\boxed{"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


# Where a server finds the answer in what was generated; without it transformers assumes Qwen3's own markers.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ASSISTANT,
    "fields": {"content": {"close": END, "content": "text"}},
}


def build_tokenizer(model_max_length: int) -> PreTrainedTokenizerFast:
    """The tokenizer, 262 entries, padding on the left as generation needs it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # A BPE without merges: one token for each byte.
    tokenizer = Tokenizer(models.BPE(vocab={byte: i for i, byte in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PAD, SYSTEM, USER, ASSISTANT, END])
    tokenizer.add_tokens([AddedToken(BOXED, normalized=False)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    wrapped.response_template = RESPONSE_TEMPLATE
    return wrapped
