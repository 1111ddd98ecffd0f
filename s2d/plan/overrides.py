"""Per-stage settings that a user may fix; what is `None` the planner chooses.

The ranges repeat those of `document`, so that a bad value is refused in the request and under its own name.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from s2d.plan.document import Frozen


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

    steps: int | None = Field(default=None, ge=1, le=1_000_000, description="Optimizer steps.")
    learning_rate: float | None = Field(default=None, gt=0, le=1, description="Peak learning rate.")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] | None = None
    warmup_steps: int | None = Field(default=None, ge=0, description="Steps of linear learning-rate warmup.")
    weight_decay: float | None = Field(default=None, ge=0)
    max_grad_norm: float | None = Field(default=None, gt=0)
    beta1: float | None = Field(default=None, ge=0, lt=1)
    beta2: float | None = Field(default=None, ge=0, lt=1)
    per_device_batch_size: int | None = Field(
        default=None, ge=1, description="Sequences in one forward pass on one device."
    )
    gradient_checkpointing: bool | None = None
    save_every: int | None = Field(default=None, ge=1, description="Steps between checkpoints.")


class GrpoOverrides(TrainingOverrides):
    prompts_per_step: int | None = Field(default=None, ge=1, description="Problems in one optimizer step.")
    group_size: int | None = Field(default=None, ge=2, description="Rollouts per problem (G).")
    epsilon: float | None = Field(default=None, gt=0, description="Lower clip.")
    epsilon_high: float | None = Field(default=None, gt=0, description="Upper clip.")
    beta: float | None = Field(default=None, ge=0, description="Weight of the reference KL; 0 = none.")
    scale_rewards: Literal["group", "batch", "none"] | None = None
    loss_type: Literal["dapo", "grpo", "dr_grpo"] | None = None


class TeacherRolloutsOverrides(SamplingOverrides):
    prompts: int | None = Field(default=None, ge=1, description="Distinct prompts.")
    samples_per_prompt: int | None = Field(default=None, ge=1, le=1024)
    batch_size: int | None = Field(default=None, ge=1, description="Completions generated together.")


class WarmupOverrides(TrainingOverrides):
    sequences_per_step: int | None = Field(default=None, ge=1, description="Teacher rollouts in one step.")
    max_steps: int | None = Field(default=None, ge=1, description="Where the warmup ends even if C2 fails.")
    check_every: int | None = Field(default=None, ge=1, description="Steps between C2 measurements.")

    @model_validator(mode="after")
    def _cap_is_last(self) -> WarmupOverrides:
        if self.steps and self.max_steps and self.max_steps < self.steps:
            raise ValueError(f"max_steps ({self.max_steps}) is below steps ({self.steps})")
        return self


class OpdOverrides(TrainingOverrides):
    sequences_per_step: int | None = Field(default=None, ge=1, description="Student rollouts in one step.")


class EvaluateOverrides(SamplingOverrides):
    k: int | None = Field(default=None, ge=1, le=1024, description="Completions per problem.")
    batch_size: int | None = Field(default=None, ge=1, description="Completions generated together.")


class StageOverrides(Frozen):
    """Settings by stage."""

    teacher_rl: GrpoOverrides | None = None
    teacher_rollouts: TeacherRolloutsOverrides | None = None
    warmup: WarmupOverrides | None = None
    opd: OpdOverrides | None = None
    student_rl: GrpoOverrides | None = None
    direct_grpo: GrpoOverrides | None = None
    evaluate: EvaluateOverrides | None = None
