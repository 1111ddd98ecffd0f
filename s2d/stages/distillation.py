"""What both halves of the dense bridge share: TRL's distillation trainer, measuring both KL directions.

The trained direction is the loss itself. The other one is computed on the first micro-batch of each step from hidden
states that are there anyway, so it costs one more projection to the vocabulary and no forward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from trl import DistillationConfig, DistillationTrainer

from s2d.stages.runtime import StageRuntime
from s2d.stages.tokens import entropy_and_kl, informative, kept_tokens
from s2d.stages.training import exact_gradients, trainer_arguments

FORWARD, REVERSE = 0.0, 1.0
"""TRL's `beta`: 0 is KL(teacher ‖ student), 1 is KL(student ‖ teacher)."""


def config(runtime: StageRuntime, steps: int, beta: float) -> DistillationConfig:
    shared = trainer_arguments(runtime, steps)
    arguments = DistillationConfig(**{**shared, "max_completion_length": prefix_tokens(runtime)}, beta=beta)
    exact_gradients(arguments)
    return arguments


def prefix_tokens(runtime: StageRuntime) -> int:
    """The longest part of a rollout that the stage draws or reads."""
    return math.ceil(runtime.stage.prefix_share * runtime.plan.max_completion_tokens)


class BridgeTrainer(DistillationTrainer):
    """DistillationTrainer that logs `forward_kl` and `reverse_kl`, mean nats per completion token.

    Args:
        token_share: of each rollout's tokens the loss is the mean over the most informative ones (`s2d.stages.tokens`).
    """

    beta: float
    temperature: float
    _hidden: list[torch.Tensor] | None = None
    _replay: list[torch.Tensor] | None = None

    def __init__(self, *args: Any, token_share: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._token_share = token_share

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self._token_share < 1.0:
            kept = kept_tokens(batch["completion_mask"], self._token_share).sum()
            batch["num_items_in_batch"] = self.accelerator.gather(kept).sum()
        return batch

    def _get_last_hidden_state(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._replay is not None:
            return self._replay.pop(0)
        hidden_BKH = self._forward_pass(*args, **kwargs)
        if self._hidden is not None:
            self._hidden.append(hidden_BKH.detach())
        return hidden_BKH

    def _forward_pass(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(B, K, H): the last hidden states of the model given first."""
        hidden_BKH: torch.Tensor = super()._get_last_hidden_state(*args, **kwargs)
        return hidden_BKH

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        first = self._step % self.args.gradient_accumulation_steps == 0
        self._hidden = [] if first else None
        if self._token_share < 1.0:
            result = self._loss_of_some(unwrapped_student, inputs, num_items_in_batch)
        else:
            result = super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)
        if first:
            self._log_both(unwrapped_student, inputs)
        return result

    def _loss_of_some(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        """TRL's loss under a mask; the tokens are chosen from the hidden states that it then takes."""
        teacher = self.accelerator.unwrap_model(self.teacher_model)
        hidden = self._both_hidden(unwrapped_student, teacher, inputs)
        heads = (unwrapped_student.get_output_embeddings(), teacher.get_output_embeddings())
        entropy_BK, kl_BK = entropy_and_kl(heads, hidden, self.temperature, reverse=self.beta == REVERSE)
        mask_BK = inputs["completion_mask"]
        kept_BK = informative(entropy_BK, kl_BK, mask_BK, self._token_share)
        self._replay = list(hidden)
        loss, *_ = super()._compute_loss(unwrapped_student, {**inputs, "tool_mask": kept_BK}, num_items_in_batch)
        self._replay = None
        # The entropy that is logged stays that of all tokens.
        return loss, (entropy_BK * mask_BK).sum(), mask_BK.sum()

    def _both_hidden(self, student: Any, teacher: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, K, H) each, of student and teacher; the teacher's without gradient."""
        ids, mask = (torch.cat([inputs[f"prompt_{x}"], inputs[f"completion_{x}"]], dim=1) for x in ("ids", "mask"))
        rest = (ids, mask, inputs["completion_ids"].size(1))
        student_BKH = self._get_last_hidden_state(student, *rest)
        self.teacher_model.eval()
        with torch.no_grad():
            # Through the teacher's own wrapper, as TRL does.
            teacher_BKH: torch.Tensor = self._forward_redirection(
                self.teacher_model, teacher, self._get_last_hidden_state, teacher, *rest
            )
        return student_BKH, teacher_BKH

    def _log_both(self, unwrapped_student: Any, inputs: Any) -> None:
        trained = self.beta
        for name, beta in (("forward_kl", FORWARD), ("reverse_kl", REVERSE)):
            self._replay, self.beta = list(self._hidden or ()), beta
            with torch.no_grad():
                # No token count given: the mean over this micro-batch's completion tokens.
                mean, *_ = super()._compute_loss(unwrapped_student, inputs, None)
            self._metrics["train" if self.model.training else "eval"][name].append(mean.item())
        self._replay, self._hidden, self.beta = None, None, trained
