"""What a short rollout probe tells of a pair and its labels: pass rates, and how many labels can teach anything.

GRPO learns from groups whose rollouts differ in reward. A problem that a model always or never solves gives no such
group, so its label is spent for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import fmean, stdev

from pydantic import Field, model_validator

from s2d.plan.frozen import Frozen

#: Before its own rollouts a problem is taken for one of the sample: a Beta around avg@k that weighs so many rollouts.
PRIOR = 0.5
#: Normal quantile of a 95 % interval.
Z_975 = 1.96


class PassRates(Frozen):
    """Of one model on labeled problems, `k` rollouts each."""

    k: int = Field(ge=2, le=1024, description="Rollouts of each problem.")
    solved: tuple[int, ...] = Field(description="How many problems were solved 0, 1, …, k times.")
    mean_completion_tokens: float = Field(ge=1)

    @model_validator(mode="after")
    def _whole(self) -> PassRates:
        if len(self.solved) != self.k + 1:
            raise ValueError(f"solved has {len(self.solved)} numbers, and k = {self.k} needs {self.k + 1}")
        if min(self.solved) < 0 or not sum(self.solved):
            raise ValueError("solved counts problems: none may be negative, and one at least must be there")
        return self

    @property
    def problems(self) -> int:
        return sum(self.solved)

    @property
    def avg(self) -> float:
        """avg@k, in [0, 1]."""
        return fmean(self._each())

    @property
    def half_width(self) -> float:
        """Of avg@k's 95 % interval over problems; 1 for a single problem."""
        each = list(self._each())
        return Z_975 * stdev(each) / math.sqrt(len(each)) if len(each) > 1 else 1.0

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

    def _each(self) -> Iterator[float]:
        return (times / self.k for times, count in enumerate(self.solved) for _ in range(count))


class Evidence(Frozen):
    """Pass rates of the two base models on a sample of the labels."""

    teacher: PassRates
    student: PassRates

    @property
    def mean_completion_tokens(self) -> float:
        return fmean((self.teacher.mean_completion_tokens, self.student.mean_completion_tokens))


def _mixed(right: float, wrong: float, group: int) -> float:
    """1 - E[p^G] - E[(1-p)^G] of a pass rate p ~ Beta(right, wrong)."""
    return 1.0 - _moment(right, wrong, group) - _moment(wrong, right, group)


def _moment(a: float, b: float, group: int) -> float:
    """E[p^G] of a Beta(a, b)."""
    return math.exp(math.lgamma(a + group) - math.lgamma(a) + math.lgamma(a + b) - math.lgamma(a + b + group))
