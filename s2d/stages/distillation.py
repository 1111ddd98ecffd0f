"""What both halves of the dense bridge share: TRL's distillation trainer, measuring both KL directions.

The trained direction is the loss itself. The other one is computed on the first micro-batch of each step from hidden
states that are there anyway, so it costs one more projection to the vocabulary and no forward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from trl import DistillationConfig, DistillationTrainer

from s2d.stages.runtime import StageRuntime
from s2d.stages.training import trainer_arguments

FORWARD, REVERSE = 0.0, 1.0
"""TRL's `beta`: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher)."""


def config(runtime: StageRuntime, steps: int, beta: float) -> DistillationConfig:
    return DistillationConfig(**trainer_arguments(runtime, steps), beta=beta)


class BridgeTrainer(DistillationTrainer):
    """DistillationTrainer that logs `forward_kl` and `reverse_kl`, mean nats per completion token."""

    beta: float
    _hidden: list[torch.Tensor] | None = None
    _replay: list[torch.Tensor] | None = None

    def _get_last_hidden_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._replay is not None:
            return self._replay.pop(0)
        hidden_BKH: torch.Tensor = super()._get_last_hidden_state(*args, **kwargs)
        if self._hidden is not None:
            self._hidden.append(hidden_BKH.detach())
        return hidden_BKH

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        first = self._step % self.args.gradient_accumulation_steps == 0
        self._hidden = [] if first else None
        result = super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        if first:
            self._log_both(unwrapped_student, inputs)
        return result

    def _log_both(self, unwrapped_student: Any, inputs: Any) -> None:
        trained = self.beta
        for name, beta in (("forward_kl", FORWARD), ("reverse_kl", REVERSE)):
            self._replay, self.beta = list(self._hidden or ()), beta
            with torch.no_grad():
                # No token count given: the mean over this micro-batch's completion tokens.
                mean, *_ = super()._compute_loss(unwrapped_student, inputs, None)
            self._metrics["train" if self.model.training else "eval"][name].append(mean.item())
        self._replay, self._hidden, self.beta = None, None, trained
