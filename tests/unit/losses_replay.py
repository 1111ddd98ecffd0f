"""Rollouts given beforehand where a trainer would generate, and one step of it: the loss and every gradient."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from losses_reference import Outcome, Sample, old_log_probs, token_log_probs
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from trl import GRPOTrainer

from s2d.stages.warmup import WarmupTrainer


class Replay:
    """The n-th row of a prompt, over all processes, gets the n-th of its rollouts. TRL's reward function as well."""

    __name__ = "replay"

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        self.policy: Any = None
        self._drawn: list[Sample] = []

    def take_over(self, trainer: Any) -> None:
        """Hand over rollouts in place of generating, and π_old of those that are off-policy."""
        trainer.replay = self
        if isinstance(trainer, WarmupTrainer):
            return
        if isinstance(trainer, GRPOTrainer):
            score = trainer._generate_and_score_completions
            trainer._generate_single_turn = lambda prompts, *_, **__: (self.draw(prompts), None)
            trainer._generate_and_score_completions = lambda rows: score(rows) | self._old(trainer.temperature)
        else:
            trainer._generate_single_turn = lambda prompts, *_, **__: self.draw(prompts)

    def draw(self, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
        by_prompt: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
        for sample in self.samples:
            by_prompt[sample.prompt].append(sample)
        everywhere, seen = gather_object([tuple(ids) for ids in prompts]), Counter[tuple[int, ...]]()
        drawn = []
        for ids in everywhere:
            drawn.append(by_prompt[ids][seen[ids]])
            seen[ids] += 1
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self._drawn = drawn[rank * len(prompts) : (rank + 1) * len(prompts)]
        return [list(sample.completion) for sample in self._drawn]

    def __call__(self, completions: Sequence[Any], **_: Any) -> list[float]:
        assert len(completions) == len(self._drawn)
        return [sample.reward for sample in self._drawn]

    def _old(self, tau: float) -> dict[str, torch.Tensor]:
        if not any(sample.ratios for sample in self._drawn):
            return {}
        with torch.no_grad():
            rows = [old_log_probs(token_log_probs(self.policy, s, tau), s).float() for s in self._drawn]
        return {"old_per_token_logps": pad_sequence(rows, batch_first=True)}


def samples_of(batch: dict[str, torch.Tensor]) -> set[Sample]:
    """The rollouts of a prepared batch, padding removed."""
    columns = (batch[f"{part}_{what}"] for part in ("prompt", "completion") for what in ("ids", "mask"))
    rows = zip(*columns, strict=True)
    return {Sample(tuple(p[pm.bool()].tolist()), tuple(c[cm.bool()].tolist())) for p, pm, c, cm in rows}


def one_batch(trainer: Any, rows: list[dict[str, Any]]) -> Outcome:
    """One micro-batch that is the whole step, by the trainer's own `training_step`."""
    trainer._step, trainer._buffered_inputs, trainer.current_gradient_accumulation_steps = 0, None, 1
    trainer.model.train()
    trainer.model.zero_grad()
    loss = trainer.training_step(trainer.model, rows, None).item()
    return Outcome(loss, _gradients(trainer.model))


def _gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


class _StepError(Exception):
    """Ends the training where its first optimizer step would begin."""


class _BeforeStep(TrainerCallback):
    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        raise _StepError


def one_step(trainer: Any) -> Outcome:
    """All micro-batches of the first optimizer step, on the stage's own data, by `train`: the gradient it would take.

    In several processes the gradient is the reduced one; the loss is this process's share, to be averaged.
    """
    losses: list[float] = []
    step = trainer.training_step

    def kept(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss: torch.Tensor = step(*args, **kwargs)
        losses.append(loss.item())
        return loss

    trainer.training_step = kept
    trainer.add_callback(_BeforeStep())
    try:
        trainer.train()
    except _StepError:
        return Outcome(sum(losses), _gradients(trainer.accelerator.unwrap_model(trainer.model)))
    raise AssertionError("no optimizer step was made")
