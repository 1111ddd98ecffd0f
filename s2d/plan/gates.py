"""The bounds that a job is measured against on its way."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from s2d.plan.frozen import Frozen


class GateC1(Frozen):
    """C1: the RL'd teacher beats its raw self on validation labels, paired over problems."""

    k: int = Field(default=4, ge=1, description="Completions per validation problem.")
    min_gain: float = Field(default=0.0, ge=0, lt=1, description="avg@k gain that must be exceeded.")
    confidence: float = Field(default=0.95, gt=0.5, lt=1)


class GateC2(Frozen):
    """C2: before OPD, on student rollouts, KL(student ‖ teacher) is low and the two agree on the likeliest token."""

    max_kl: float = Field(default=0.5, gt=0, description="Mean nats per completion token, at most.")
    min_agreement: float = Field(
        default=0.7, ge=0, le=1, description="Share of tokens at which both have the same top token, at least."
    )
    prompts: int = Field(default=128, ge=1)


class Gates(Frozen):
    c1: GateC1 = GateC1()
    c2: GateC2 = GateC2()
    on_failure: Literal["stop", "continue"] = "stop"
