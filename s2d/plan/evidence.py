"""What a short rollout probe tells of a pair and its labels: pass rates, and how many labels can teach anything.

GRPO learns from groups whose rollouts differ in reward. A problem that a model always or never solves gives no such
group, so its label is spent for nothing.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, model_validator

from s2d.plan.frozen import Frozen

#: Before its own rollouts a problem is taken for one of the sample: a Beta around avg@k that weighs so many rollouts.
PRIOR = 0.5
#: Problems of one count.
MOST = 1_000_000
#: Normal quantile of a 95 % interval.
Z_975 = 1.96


class PassRates(Frozen):
    """Of one model on labeled problems, `k` rollouts each."""

    k: int = Field(ge=2, le=1024, description="Rollouts of each problem.")
    solved: tuple[Annotated[int, Field(ge=0, le=MOST)], ...] = Field(
        description="How many problems were solved 0, 1, …, k times."
    )
    mean_completion_tokens: float = Field(ge=1)

    @model_validator(mode="after")
    def _whole(self) -> PassRates:
        if len(self.solved) != self.k + 1:
            raise ValueError(f"solved has {len(self.solved)} numbers, and k = {self.k} needs {self.k + 1}")
        if not sum(self.solved):
            raise ValueError("solved counts problems, and there is none")
        return self

    @property
    def problems(self) -> int:
        return sum(self.solved)

    @property
    def avg(self) -> float:
        """avg@k, in [0, 1]."""
        return self._mean(self.solved)

    @property
    def half_width(self) -> float:
        """Of avg@k's 95 % interval over problems, as if one more was always and one never solved: where all problems
        have one count, the sample's own deviation would say that nothing is left to chance (Agresti and Coull 1998)."""
        with_two = (self.solved[0] + 1, *self.solved[1:-1], self.solved[-1] + 1)
        mean, count = self._mean(with_two), self.problems + 2
        variance = sum(many * (times / self.k - mean) ** 2 for times, many in enumerate(with_two)) / (count - 1)
        return Z_975 * math.sqrt(variance / count)

    @property
    def never(self) -> float:
        """Share of the problems that no rollout solved."""
        return self.solved[0] / self.problems

    @property
    def always(self) -> float:
        """Share of the problems that every rollout solved."""
        return self.solved[-1] / self.problems

    def mixed(self, group: int) -> float:
        """Expected share of groups of `group` rollouts that hold both right and wrong ones: the labels with signal."""
        # Half a rollout right and half one wrong, so that neither is taken for impossible.
        usual = (self.avg * self.k * self.problems + 0.5) / (self.k * self.problems + 1)
        shares = (
            count * _mixed(times + PRIOR * usual, self.k - times + PRIOR * (1 - usual), group)
            for times, count in enumerate(self.solved)
        )
        return sum(shares) / self.problems

    def _mean(self, solved: tuple[int, ...]) -> float:
        return sum(times * many for times, many in enumerate(solved)) / (self.k * sum(solved))


class Evidence(Frozen):
    """Pass rates of two base models on a sample of the labels."""

    pair: tuple[str, str] = Field(description="The teacher and the student, as the plan has them.")
    teacher: PassRates
    student: PassRates


def _mixed(right: float, wrong: float, group: int) -> float:
    """1 - E[p^G] - E[(1-p)^G] of a pass rate p ~ Beta(right, wrong)."""
    return 1.0 - _moment(right, wrong, group) - _moment(wrong, right, group)


def _moment(a: float, b: float, group: int) -> float:
    """E[p^G] of a Beta(a, b)."""
    return math.exp(math.lgamma(a + group) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + group))
