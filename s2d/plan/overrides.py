"""Per-stage settings that a user may fix; what is `None` the planner chooses.

The ranges repeat those of `document`, so that a bad value is refused in the request and under its own name.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from s2d.plan.frozen import Frozen
from s2d.plan.names import Control

#: The controls that can be matched in compute as well as in updates.
COMPUTE_MATCHED: tuple[Control, ...] = ("direct_grpo", "raw_teacher_bridge", "opd_only", "warmup_only")
#: Learning rates that the direct control may be given to choose from.
MAX_RATES = 8
MAX_STEPS = 1_000_000
#: Rollouts of one problem, completions of one batch: far above any that fit, and low enough to compute with.
MAX_GROUP, MAX_BATCH = 65_536, 1_000_000


class Overrides(Frozen):
    """Settings of one stage."""

    def given(self, *names: str) -> dict[str, Any]:
        """The settings that were fixed, of those named (of all when none is named)."""
        values = self.model_dump(exclude_none=True)
        return {key: values[key] for key in (names or values) if key in values}


class SamplingOverrides(Overrides):
    temperature: float | None = Field(default=None, gt=0, le=10, description="Sampling temperature.")
    top_p: float | None = Field(default=None, gt=0, le=1, description="Nucleus mass; 1 = off.")
    top_k: int | None = Field(default=None, ge=0, description="Tokens kept; 0 = off.")


class TrainingOverrides(SamplingOverrides):
    """What every training stage understands."""

    steps: int | None = Field(default=None, ge=1, le=MAX_STEPS, description="Optimizer steps.")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="Peak learning rate.")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] | None = None
    warmup_steps: int | None = Field(
        default=None, ge=0, le=MAX_STEPS, description="Steps of linear learning-rate warmup."
    )
    weight_decay: float | None = Field(default=None, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    per_device_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences in one forward pass on one device."
    )
    gradient_checkpointing: bool | None = None
    sharded: bool | None = Field(
        default=None, description="Share weights, gradients and optimizer states among the devices (FSDP)."
    )
    save_every: int | None = Field(default=None, ge=1, description="Steps between checkpoints.")


class GrpoOverrides(TrainingOverrides):
    prompts_per_step: int | None = Field(default=None, ge=1, description="Problems in one optimizer step.")
    group_size: int | None = Field(default=None, ge=2, le=MAX_GROUP, description="Rollouts per problem (G).")
    epsilon: float | None = Field(default=None, gt=0, description="Lower clip.")
    epsilon_high: float | None = Field(default=None, gt=0, description="Upper clip.")
    beta: float | None = Field(default=None, ge=0, description="Weight of the reference KL; 0 = none.")
    scale_rewards: Literal["group", "batch", "none"] | None = None
    loss_type: Literal["dapo", "grpo", "dr_grpo"] | None = None


class DirectGrpoOverrides(GrpoOverrides):
    learning_rates: tuple[float, ...] | None = Field(
        default=None,
        min_length=2,
        max_length=MAX_RATES,
        description="Try each of these and keep the best on the validation labels: a fair chance for the control.",
    )

    @model_validator(mode="after")
    def _sound(self) -> DirectGrpoOverrides:
        if self.learning_rates is None:
            return self
        if self.learning_rate is not None:
            raise ValueError("give learning_rate or learning_rates, not both")
        if len(set(self.learning_rates)) < len(self.learning_rates) or not all(0 < r <= 1 for r in self.learning_rates):
            raise ValueError("learning_rates must be different numbers over 0, at most 1")
        return self


class TeacherRolloutsOverrides(SamplingOverrides):
    prompts: int | None = Field(default=None, ge=1, description="Distinct prompts.")
    samples_per_prompt: int | None = Field(default=None, ge=1, le=1024)
    batch_size: int | None = Field(default=None, ge=1, le=MAX_BATCH, description="Completions generated together.")


class DistillationOverrides(TrainingOverrides):
    token_share: float | None = Field(
        default=None, gt=0, le=1, description="Share of each rollout's tokens that is trained on, the most informative."
    )
    prefix_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="Rollouts end after this share of max_completion_tokens; a student may forget what comes after.",
    )


class WarmupOverrides(DistillationOverrides):
    sequences_per_step: int | None = Field(default=None, ge=1, description="Teacher rollouts in one step.")
    max_steps: int | None = Field(
        default=None, ge=1, le=MAX_STEPS, description="Where the warmup ends even if C2 fails."
    )
    check_every: int | None = Field(default=None, ge=1, description="Steps between C2 measurements.")
    score_once: bool | None = Field(
        default=None, description="The teacher reads each rollout once; its hidden states are kept on disk meanwhile."
    )

    @model_validator(mode="after")
    def _cap_is_last(self) -> WarmupOverrides:
        if self.steps and self.max_steps and self.max_steps < self.steps:
            raise ValueError(f"max_steps ({self.max_steps}) is below steps ({self.steps})")
        return self


class OpdOverrides(DistillationOverrides):
    sequences_per_step: int | None = Field(default=None, ge=1, description="Student rollouts in one step.")
    extrapolate: tuple[Annotated[float, Field(gt=0, le=10)], ...] | None = Field(
        default=None,
        max_length=8,
        description="Rising factors by which the update may be prolonged at the end, tried until the reverse KL on "
        "held-out prompts rises.",
    )

    @model_validator(mode="after")
    def _rising(self) -> OpdOverrides:
        factors = self.extrapolate or ()
        if list(factors) != sorted(set(factors)):
            raise ValueError("extrapolate must rise from factor to factor")
        return self


class EvaluateOverrides(SamplingOverrides):
    k: int | None = Field(default=None, ge=1, le=1024, description="Completions per problem.")
    batch_size: int | None = Field(default=None, ge=1, le=MAX_BATCH, description="Completions generated together.")


class StageOverrides(Frozen):
    """Settings by stage."""

    teacher_rl: GrpoOverrides | None = None
    teacher_rollouts: TeacherRolloutsOverrides | None = None
    warmup: WarmupOverrides | None = None
    opd: OpdOverrides | None = None
    student_rl: GrpoOverrides | None = None
    direct_grpo: DirectGrpoOverrides | None = None
    evaluate: EvaluateOverrides | None = None
