"""The paper's claims, judged over seeds: paired differences between arms with a t interval.

A claim "A > B" is held when the whole 95 % interval of the mean difference lies above 0, and contradicted when it lies
below; anything else is not shown. "A >= B" is held when the interval lies above a margin of one point below 0, fixed
before any of the table's seeds was run. Seeds are the unit: each has its own base checkpoints, labels, prompts and
sampling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["held", "not shown", "contradicted", "one seed: no interval"]

#: Points (shares of 1) that "at least as good" may lie below.
MARGIN = 0.01

#: Two-sided 95 % quantiles of Student's t by degrees of freedom.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)


@dataclass(frozen=True)
class Claim:
    """`over` − `under` is said to be positive; each side is a sum of (arm, weight)."""

    name: str
    text: str
    over: tuple[tuple[str, float], ...]
    under: tuple[tuple[str, float], ...]
    relation: Literal[">", ">="] = ">"

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(arm for arm, _ in (*self.over, *self.under))

    def difference(self, means: Mapping[str, float]) -> float:
        """Of one seed, from the mean accuracy of each arm."""
        over, under = (sum(weight * means[arm] for arm, weight in side) for side in (self.over, self.under))
        return over - under


def _simple(name: str, text: str, over: str, under: str, relation: Literal[">", ">="] = ">") -> Claim:
    return Claim(name, text, ((over, 1.0),), ((under, 1.0),), relation)


CLAIMS = (
    _simple("a1", "raw-teacher bridge (no label) < direct GRPO (1,024 labels)", "direct_grpo", "raw_teacher_bridge"),
    _simple("a2", "direct GRPO (1,024 labels) < RL-teacher bridge (512)", "opd_student", "direct_grpo"),
    _simple("b1", "warmup + OPD >= OPD only", "opd_student", "opd_only", ">="),
    _simple("b2", "warmup + OPD >= warmup only", "opd_student", "warmup_only", ">="),
    Claim(
        "c",
        "stage 3 gains more after the bridge than GRPO on the cold student does",
        (("rl_student", 1.0), ("base_student", 1.0)),
        (("opd_student", 1.0), ("cold_student_rl", 1.0)),
    ),
    _simple("d0", "stage 3 beats no further training", "rl_student", "opd_student"),
    _simple("d1", "stage 3 beats the replay control (as many further steps of OPD)", "rl_student", "replay"),
    _simple("d2", "stage 3 beats the same steps on stage 1's labels", "rl_student", "replay_labels"),
    _simple("e", "RL-teacher bridge beats raw-teacher bridge", "opd_student", "raw_teacher_bridge"),
    _simple("f", "the whole workflow beats direct GRPO", "rl_student", "direct_grpo"),
    _simple("g", "many unlabeled prompts beat the labeled prompts alone", "opd_student", "labeled_bridge"),
)

#: The same questions at equal FLOPs. Direct GRPO has those of the whole workflow, the other controls those of the
#: bridge, so in a1 and a2 direct GRPO has more than what it is compared with; c and d have no control of this kind.
COMPUTE_CLAIMS = (
    _simple("a1", "raw-teacher bridge < direct GRPO", "direct_grpo_compute", "raw_teacher_bridge_compute"),
    _simple("a2", "direct GRPO (the whole workflow's FLOPs) < RL-teacher bridge", "opd_student", "direct_grpo_compute"),
    _simple("b1", "warmup + OPD >= OPD only", "opd_student", "opd_only_compute", ">="),
    _simple("b2", "warmup + OPD >= warmup only", "opd_student", "warmup_only_compute", ">="),
    _simple("e", "RL-teacher bridge beats raw-teacher bridge", "opd_student", "raw_teacher_bridge_compute"),
    _simple("f", "the whole workflow beats direct GRPO", "rl_student", "direct_grpo_compute"),
)


class Interval(BaseModel):
    """A mean over seeds with its 95 % t interval; no interval for one seed."""

    model_config = ConfigDict(frozen=True)

    mean: float
    low: float | None
    high: float | None
    seeds: int


class Judged(BaseModel):
    """What the seeds say of a claim."""

    model_config = ConfigDict(frozen=True)

    name: str
    text: str
    verdict: Verdict
    difference: Interval
    by_seed: list[float]


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t interval (Student 1908) of independent values."""
    n = len(values)
    if n == 1:
        return Interval(mean=values[0], low=None, high=None, seeds=1)
    # Past the table's end its last entry is a little too large, so that the interval is never too narrow.
    quantile = T_975[min(n - 2, len(T_975) - 1)]
    half = quantile * stdev(values) / math.sqrt(n)
    return Interval(mean=fmean(values), low=fmean(values) - half, high=fmean(values) + half, seeds=n)


def judge(claim: Claim, seeds: Sequence[Mapping[str, float]]) -> Judged:
    """Args:
    seeds: mean accuracy by arm, one mapping a seed."""
    differences = [claim.difference(means) for means in seeds]
    found = interval(differences)
    return Judged(
        name=claim.name,
        text=claim.text,
        verdict=_verdict(found, 0.0 if claim.relation == ">" else -MARGIN),
        difference=found,
        by_seed=differences,
    )


def _verdict(found: Interval, bound: float) -> Verdict:
    if found.low is None or found.high is None:
        return "one seed: no interval"
    if found.low > bound:
        return "held"
    return "contradicted" if found.high < min(bound, 0.0) else "not shown"
