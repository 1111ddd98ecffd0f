"""avg@k, pass@k, their intervals, and the paired test of gate C1. Plain Python, so that a report needs no torch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, pvariance


@dataclass(frozen=True)
class Estimate:
    """A mean with its two-sided confidence interval."""

    mean: float
    low: float
    high: float


def avg_at_k(rewards: Sequence[Sequence[float]], confidence: float = 0.95) -> Estimate:
    """Mean reward over problems and their k completions.

    The completions of one problem are not independent, so the Wilson interval is taken at the effective sample size
    p(1−p) / Var(mean), with the variance estimated between problems and the size kept within [n, n·k]. Unlike a
    bootstrap it stays honest when every reward is 0 or 1 (Wilson 1927; Kish's design effect).

    Args:
        rewards: per problem the rewards of its completions, each in [0, 1].
    """
    means = [fmean(one) for one in rewards]
    mean, n = fmean(means), len(means)
    return _wilson(mean, _effective_size(means, mean, n, sum(map(len, rewards))), confidence)


def pass_at_k(rewards: Sequence[Sequence[float]], k: int, confidence: float = 0.95) -> Estimate:
    """Chance that at least one of k completions is fully right: 1 − C(n−c, k)/C(n, k) a problem (Chen et al. 2021).

    Raises:
        ValueError: a problem has fewer than k completions.
    """
    chances = [_pass_chance(len(one), sum(reward >= 1.0 for reward in one), k) for one in rewards]
    mean = fmean(chances)
    return _wilson(mean, _effective_size(chances, mean, len(chances), sum(map(len, rewards)) / k), confidence)


def _pass_chance(drawn: int, correct: int, k: int) -> float:
    if k > drawn:
        raise ValueError(f"pass@{k} needs at least {k} completions a problem, there are {drawn}")
    return 1.0 - math.comb(drawn - correct, k) / math.comb(drawn, k)


def _effective_size(means: Sequence[float], mean: float, problems: int, completions: float) -> float:
    spread = pvariance(means, mean) / max(problems - 1, 1)
    if spread == 0.0:
        return problems
    return min(max(mean * (1.0 - mean) / spread, problems), completions)


def _wilson(mean: float, size: float, confidence: float) -> Estimate:
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    centre = (mean + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(mean * (1 - mean) / size + z * z / (4 * size * size))
    # At the ends rounding could leave the mean outside by an ulp.
    return Estimate(mean, min(max(0.0, centre - half), mean), max(min(1.0, centre + half), mean))


def paired_gain(
    before: Sequence[float], after: Sequence[float], *, confidence: float, seed: int, resamples: int = 4000
) -> Estimate:
    """Mean of `after − before` over the same problems, with a percentile bootstrap interval over problems.

    Args:
        before, after: mean reward of each problem, same order.
        confidence: one-sided; the lower end is exceeded with this confidence, the upper end likewise.
    """
    gains = [b - a for a, b in zip(before, after, strict=True)]
    generator = random.Random(seed)
    means = sorted(fmean(generator.choices(gains, k=len(gains))) for _ in range(resamples))
    cut = int((1 - confidence) * resamples)
    return Estimate(fmean(gains), means[cut], means[-1 - cut])
