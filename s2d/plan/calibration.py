"""From the stages that a machine has run to how long the next ones will take.

A stage's time over what was expected of it, given the tokens that it really handled, is its ratio. The logarithms of
the ratios of one kind of stage are taken for normally distributed around a middle of their own; the middles of the
kinds scatter around the machine's. What was believed before counts like some stages that were seen, see `MIDDLE` and
`SPREAD`. The range is that of a further stage, so what is not known of the middle widens it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from s2d.plan.document import Plan, Training
from s2d.plan.machine import Calibration, Factor, KindFactor, Rates
from s2d.plan.names import StageKind
from s2d.plan.timing import Lengths, StageWork, expected_s
from s2d.plan.work import Ground, lengths, work

#: What was believed before counts as so many stages: of the middle, as machines differ, and of the spread.
MIDDLE, SPREAD = 1, 2
#: 80 % of a normal distribution lie within so many standard deviations.
WITHIN_80 = 1.2816
#: No range is narrower: the same stage takes longer on a busy day.
LEAST_SPREAD = 1.15


@dataclass(frozen=True)
class Ran:
    """A stage that has run from its start to its end in one go."""

    stage: str
    seconds: float
    tokens: int
    steps: int


def ratio(plan: Plan, ran: Ran, rates: Rates) -> float:
    """Its seconds over those that `rates` give for what it has done."""
    ground, stage = Ground.of(plan), plan.stage(ran.stage)
    done = work(ground, plan.stages, stage, ran.steps if isinstance(stage, Training) else None)
    long = lengths(ground, stage)
    completion = min(float(long.max_completion), max(1.0, _mean_completion(done, long, ran)))
    return ran.seconds / expected_s(plan.hardware, rates, long, completion, done)


def _mean_completion(done: StageWork, long: Lengths, ran: Ran) -> float:
    """Training counts the prompts among its tokens, what only generates does not."""
    trained = sum(part.steps * part.sequences for part in done.train)
    if trained:
        return ran.tokens / trained - long.prompt
    return ran.tokens / max(1.0, sum(part.sequences for part in done.generate))


def calibrate(
    rates: Rates, seen: Sequence[tuple[StageKind, float]], before: Factor, *, probed: bool = True
) -> Calibration:
    """
    Args:
        seen: kind and ratio of each stage, against the same rates.
        before: what is believed of a stage when none was seen.
    """
    logs = [math.log(one) for _, one in seen]
    middle = (MIDDLE * math.log(before.middle) + sum(logs)) / (MIDDLE + len(logs))
    kinds = {kind: [math.log(one) for name, one in seen if name == kind] for kind in get_args(StageKind)}
    factors = tuple(_factor(kind, middle, some, before) for kind, some in kinds.items())
    return Calibration(rates=rates, probed=probed, factors=factors, observed=len(seen))


def _factor(kind: StageKind, middle: float, logs: Sequence[float], before: Factor) -> KindFactor:
    own = (MIDDLE * middle + sum(logs)) / (MIDDLE + len(logs))
    usual = (math.log(before.spread) / WITHIN_80) ** 2
    variance = (SPREAD * usual + sum((one - own) ** 2 for one in logs)) / (SPREAD + len(logs))
    # Without any stage `before` is a further stage's range already.
    unsure = 1 / (MIDDLE + len(logs)) if logs else 0.0
    spread = math.exp(WITHIN_80 * math.sqrt(variance * (1 + unsure)))
    return KindFactor(kind=kind, middle=round(math.exp(own), 4), spread=round(max(LEAST_SPREAD, spread), 4))


def middle_of(fast: Rates, slow: Rates) -> Rates:
    """Between two cases, each rate at its geometric mean."""
    pairs = zip(fast.model_dump().values(), slow.model_dump().values(), strict=True)
    return Rates(**dict(zip(Rates.model_fields, (math.sqrt(a * b) for a, b in pairs), strict=True)))
