"""What a plan adds to every prompt."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from s2d.plan.frozen import Frozen

#: What a chat template has from jinja or from transformers, and jinja's own words.
_FROM_JINJA = ("range", "dict", "lipsum", "cycler", "joiner", "namespace", "self", "loop", "super", "caller")
_FROM_TRANSFORMERS = ("messages", "add_generation_prompt", "tools", "documents", "raise_exception", "strftime_now")
_TOKENS = tuple(f"{name}_token" for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask"))
_WORDS = ("true", "false", "none", "and", "or", "not", "in", "is", "if", "elif", "else", "for", "recursive", "import")
RESERVED = frozenset((*_FROM_JINJA, *_FROM_TRANSFORMERS, *_TOKENS, *_WORDS, "from", "as", "with", "without", "context"))


class Prompting(Frozen):
    """What is added to every prompt, in training, in evaluation and when the student is served."""

    system: str | None = Field(
        default=None, min_length=1, max_length=20_000, description="System message of prompts that have none."
    )
    suffix: str | None = Field(
        default=None, min_length=1, max_length=20_000, description="Added to the last user message as it stands."
    )
    template: dict[
        Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,40}$")],
        bool | int | float | Annotated[str, StringConstraints(max_length=1000)],
    ] = Field(default={}, max_length=16, description="Arguments of the chat template, such as enable_thinking: false.")

    @model_validator(mode="after")
    def _leaves_the_conversation_alone(self) -> Prompting:
        if taken := RESERVED & set(self.template):
            raise ValueError(f"prompt.template cannot set {', '.join(sorted(taken))}: a chat template has them already")
        return self
