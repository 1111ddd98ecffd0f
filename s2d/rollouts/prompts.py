"""From rows to prompts: rendered as the model will see them, tokenised, and only those that fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from s2d.data.rows import Row, read_rows
from s2d.errors import StageFailure


@dataclass(frozen=True)
class Prompt:
    """A row as the model will see it. `ids`: token ids of the rendered prompt, generation prompt included."""

    row_id: str
    text: list[dict[str, str]] | str
    ids: list[int]
    answer: str | None


def render(row: Row, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    """Through the chat template where the tokenizer has one, else the plain text of the turns."""
    if tokenizer.chat_template is None:
        text = "\n\n".join(message.content for message in row.messages)
        return Prompt(row.id, text, tokenizer(text=text)["input_ids"], row.answer)
    messages = [{"role": message.role, "content": message.content} for message in row.messages]
    encoded = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    return Prompt(row.id, messages, encoded["input_ids"], row.answer)


def load_prompts(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, max_tokens: int
) -> tuple[list[Prompt], int]:
    """The prompts of these files that have at most `max_tokens` tokens, and how many were longer and are left out.

    Raises:
        StageFailure: code "data"; there is no prompt, or none that fits.
    """
    prompts = [render(row, tokenizer) for path in paths for row in read_rows(path)]
    fitting = [prompt for prompt in prompts if len(prompt.ids) <= max_tokens]
    if not prompts:
        raise StageFailure(f"There is no row in {', '.join(path.name for path in paths)}.", code="data")
    if not fitting:
        shortest = min(len(prompt.ids) for prompt in prompts)
        raise StageFailure(
            f"None of the {len(prompts)} prompts fits: the shortest has {shortest} tokens, the plan allows "
            f"{max_tokens}. Make a plan with a larger max_prompt_tokens.",
            code="data",
        )
    return fitting, len(prompts) - len(fitting)
