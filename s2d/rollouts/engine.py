"""What an engine does: draw completions for tokenised prompts from one model, reproducibly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from s2d.plan.document import Sampling


@dataclass(frozen=True)
class Rollout:
    """One completion. `ids` ends with an EOS id unless it was truncated at the token limit."""

    ids: list[int]
    truncated: bool


class RolloutEngine(Protocol):
    """Holds one model. The same seed and the same prompts in the same order give the same rollouts."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> list[list[Rollout]]:
        """`samples` rollouts for each prompt (token ids); `on_batch(done, total)` counts sequences."""
        ...

    def close(self) -> None:
        """Give the model's memory back."""
        ...
