"""The verifier as TRL's reward function, graded in killable processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from s2d.verifiers.pool import GradingPool


def completion_text(completion: str | list[dict[str, str]]) -> str:
    """TRL hands over a string, or the assistant's turn for conversational prompts."""
    return completion if isinstance(completion, str) else str(completion[-1]["content"])


class VerifierReward:
    """r_i in [0, 1] for each completion. Its `__name__` is what TRL logs it under."""

    __name__ = "verifier"

    def __init__(self, pool: GradingPool) -> None:
        self._pool = pool

    def __call__(
        self,
        completions: Sequence[Any],
        answer: Sequence[str],
        log_metric: Callable[[str, float], None] | None = None,
        **_: Any,
    ) -> list[float]:
        before = self._pool.timeouts
        grades = self._pool.grade([(completion_text(c), a) for c, a in zip(completions, answer, strict=True)])
        if log_metric is not None:
            log_metric("verifier_timeouts", self._pool.timeouts - before)
        return [grade.reward for grade in grades]
