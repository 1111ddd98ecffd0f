"""Draws k completions a problem, grades them and keeps every reward: what each number in the report comes from."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from s2d.evaluate.scores import Scores
from s2d.plan.document import Sampling
from s2d.rollouts.engine import RolloutEngine
from s2d.rollouts.prompts import Prompt
from s2d.verifiers.pool import GradingPool


def score(
    engine: RolloutEngine,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[Prompt],
    pool: GradingPool,
    *,
    k: int,
    sampling: Sampling,
    max_tokens: int,
    seed: int,
    on_batch: Callable[[int, int], None],
) -> Scores:
    """avg@k material for one model. Every problem must be labeled."""
    started = time.monotonic()
    drawn = engine.generate(
        [problem.ids for problem in problems],
        samples=k,
        sampling=sampling,
        max_tokens=max_tokens,
        seed=seed,
        on_batch=on_batch,
    )
    flat = [rollout for group in drawn for rollout in group]
    texts = tokenizer.batch_decode([rollout.ids for rollout in flat], skip_special_tokens=True)
    answers = [str(problem.answer) for problem in problems for _ in range(k)]
    grades = [grade.reward for grade in pool.grade(list(zip(texts, answers, strict=True)))]
    return Scores(
        ids=[problem.row_id for problem in problems],
        rewards=[grades[i * k : (i + 1) * k] for i in range(len(problems))],
        completion_tokens=sum(len(rollout.ids) for rollout in flat),
        truncated=sum(rollout.truncated for rollout in flat) / len(flat),
        seconds=time.monotonic() - started,
        prompt_tokens=k * sum(len(problem.ids) for problem in problems),
    )
