"""How long prompts and completions may be, and how long they are taken to be."""

from __future__ import annotations

from s2d.errors import InvalidPlan
from s2d.plan import defaults
from s2d.plan.document import Model
from s2d.plan.request import DataSummary, PlanRequest
from s2d.plan.timing import Lengths

#: Characters per token: word pieces, or about one per character where the vocabulary is that small.
CHARS_PER_TOKEN, SMALL_VOCABULARY = 3.5, 1024
#: Mean prompt length where nothing is known of the data, tokens.
UNKNOWN_PROMPT = 150
TEMPLATE_TOKENS = 16


def token_limits(request: PlanRequest, data: DataSummary | None, teacher: Model, student: Model) -> tuple[int, int]:
    """Longest prompt and completion, within the shorter context of the two models."""
    context = min(teacher.context, student.context)
    for name in ("max_prompt_tokens", "max_completion_tokens"):
        if (getattr(request, name) or 0) >= context:
            raise InvalidPlan(
                f"{name} is {getattr(request, name):,}, and the models' context is {context:,} tokens for prompt and "
                "completion together.",
                param=name,
            )
    wanted = defaults.MAX_PROMPT
    if data is not None:
        wanted = max(256, -(-int(1.5 * tokens_of(data.p95_prompt_chars, student)) // 64) * 64)
    room = context - (request.max_completion_tokens or 1)
    prompt = request.max_prompt_tokens or max(1, min(wanted, context // 2, room))
    completion = request.max_completion_tokens or max(1, min(defaults.MAX_COMPLETION, context - prompt))
    if prompt + completion > context:
        raise InvalidPlan(
            f"max_prompt_tokens ({prompt:,}) and max_completion_tokens ({completion:,}) are more than the models' "
            f"context of {context:,} tokens.",
            param="max_completion_tokens",
        )
    return prompt, completion


def mean_lengths(
    request: PlanRequest, data: DataSummary | None, student: Model, max_prompt: int, max_completion: int
) -> Lengths:
    """What the estimates take."""
    mean = request.mean_completion_tokens
    if mean is not None and mean > max_completion:
        raise InvalidPlan(
            f"mean_completion_tokens ({mean:g}) is over max_completion_tokens ({max_completion:,}), where completions "
            "are cut.",
            param="mean_completion_tokens",
        )
    prompt = tokens_of(data.mean_prompt_chars, student) if data else UNKNOWN_PROMPT
    return Lengths(min(max_prompt, prompt), max_completion, mean)


def tokens_of(chars: float, model: Model) -> float:
    """Tokens of a prompt of so many characters: a rough guess without the tokenizer."""
    return chars / (1 if model.vocab_size < SMALL_VOCABULARY else CHARS_PER_TOKEN) + TEMPLATE_TOKENS
