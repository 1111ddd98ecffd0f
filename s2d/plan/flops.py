"""FLOPs of a stage from the tokens that it handled: the measure in which arms are matched in compute.

Per token and with N parameters: generate or score 2N, train 6N (8N with checkpointed activations; LoRA leaves the 2N of
the weights' own gradients out). Attention, the optimizer and grading are left out: they are small beside N at the
lengths used here, and the same for every arm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from s2d.plan.document import Evaluate, Grpo, Model, Opd, Select, Stage, TeacherRollouts, Training, Warmup
from s2d.plan.graph import base_of


@dataclass(frozen=True)
class Compute:
    """The FLOPs of the stages of one plan."""

    stages: Sequence[Stage]
    teacher: Model
    student: Model

    def flops(self, stage: Stage, tokens: float, scored: float | None = None) -> float:
        """FLOPs of `tokens` tokens, prompt and completion, in this stage; 0 for the evaluation, which is no arm's.

        Args:
            scored: how many of a training stage's tokens the frozen model read; None: all.
        """
        if isinstance(stage, Evaluate):
            return 0.0
        if isinstance(stage, TeacherRollouts):
            return 2.0 * self._parameters(stage.teacher) * tokens
        if isinstance(stage, Select):
            return 2.0 * self._parameters(stage.candidates[0]) * tokens
        read = tokens if scored is None else scored
        return tokens * self._parameters(stage.starts_from) * _trained(stage) + read * self._scored(stage)

    def _parameters(self, model: str) -> int:
        return (self.teacher if base_of(self.stages, model) == "base_teacher" else self.student).parameters

    def _scored(self, stage: Training) -> float:
        """The forward pass of a frozen model: the teacher, or GRPO's reference."""
        if isinstance(stage, Warmup | Opd):
            return 2.0 * self._parameters(stage.teacher)
        if isinstance(stage, Grpo) and stage.beta > 0:
            return 2.0 * self._parameters(stage.starts_from)
        return 0.0


def _trained(stage: Training) -> float:
    """Per parameter of the model that is trained: generation where the stage has it, forward and backward."""
    generates = 0.0 if isinstance(stage, Warmup) else 2.0
    backward = 2.0 if stage.lora else 4.0
    return generates + 2.0 + backward + (2.0 if stage.gradient_checkpointing else 0.0)
