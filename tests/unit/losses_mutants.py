"""Ways in which a loss could be wrong. Each mutant changes one thing of a trainer, or of the module that makes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from losses_samples import EOS
from trl.trainer import distillation_trainer

from s2d.evaluate import kl
from s2d.stages import distillation, grpo, opd, warmup

Mutant = Callable[[pytest.MonkeyPatch, Any], None]
"""Changes the trainer; one of a module is applied before the trainer is made and gets None."""
Batch = dict[str, Any]


def around(patch: pytest.MonkeyPatch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace `owner.name` by `change(original, *arguments)`."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: change(original, *args, **kwargs))


def put(name: str, value: Any) -> Mutant:
    return lambda patch, trainer: patch.setattr(trainer, name, value)


def on_batch(change: Callable[[Batch], Batch]) -> Mutant:
    """Other tensors in the prepared batch."""

    def changed(original: Any, rows: Any) -> Batch:
        batch = original(rows)
        return {**batch, **change(batch)}

    return lambda patch, trainer: around(patch, trainer, "_prepare_inputs", changed)


def prompt_included(batch: Batch) -> Batch:
    """The prompt's last token counts as the completion's first."""
    moved = {
        f"completion_{what}": torch.cat([batch[f"prompt_{what}"][:, -1:], batch[f"completion_{what}"]], 1)
        for what in ("ids", "mask")
    }
    moved |= {name: torch.nn.functional.pad(batch[name], (1, 0)) for name in batch if name.endswith("per_token_logps")}
    left = {name: batch[name][:, :-1] for name in ("prompt_ids", "prompt_mask")}
    return {**moved, **left, "num_items_in_batch": batch["num_items_in_batch"] + len(batch["prompt_ids"])}


def cut_off_dropped(batch: Batch) -> Batch:
    """Rollouts without an end of sequence do not count."""
    mask_BK = batch["completion_mask"] * (batch["completion_ids"] == EOS).any(1, keepdim=True)
    return {"completion_mask": mask_BK, "num_items_in_batch": mask_BK.sum()}


def end_dropped(batch: Batch) -> Batch:
    """The end of sequence is not learned."""
    mask_BK = batch["completion_mask"] * (batch["completion_ids"] != EOS)
    return {"completion_mask": mask_BK, "num_items_in_batch": mask_BK.sum()}


def late(method: str) -> Mutant:
    """Shifted labels: what belongs to one token is used for the next."""

    def roll(original: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if isinstance(result, tuple):
            return (result[0].roll(1, dims=1), *result[1:])
        return result.roll(1, dims=1)

    return lambda patch, trainer: around(patch, trainer, method, roll)


def sequence_mean(original: Any, s_BKH: Any, t_BKH: Any, *heads_mask_beta: Any, **options: Any) -> Any:
    """Every rollout counts alike, however long."""
    *heads, mask_BK, beta = heads_mask_beta
    options["num_items_in_batch"] = None
    rows = zip(s_BKH.split(1), t_BKH.split(1), mask_BK.split(1), strict=True)
    parts = [original(s, t, *heads, m, beta, **options) for s, t, m in rows]
    losses, entropies, counts = (torch.stack(column) for column in zip(*parts, strict=True))
    return losses.mean(), entropies.sum(), counts.sum()


def micro_batch_mean(original: Any, *args: Any, **options: Any) -> Any:
    """Every one of eight micro-batches counts alike, however many tokens it has."""
    loss, *rest = original(*args, **{**options, "num_items_in_batch": None})
    return loss / 8, *rest


def through_sampling(original: Any, student: Any, batch: Batch, count: Any) -> Any:
    """The score function's term, KL × ∇ log π(y): the gradient alone is another, not the value."""
    loss, *rest = original(student, batch, count)
    ids, mask = (
        torch.cat([batch[f"{part}_{what}"] for part in ("prompt", "completion")], 1) for what in ("ids", "mask")
    )
    log_BTV = torch.log_softmax(student(input_ids=ids, attention_mask=mask).logits[:, :-1], -1)
    drawn_BK = log_BTV.gather(-1, ids[:, 1:, None])[:, -batch["completion_ids"].size(1) :, 0] * batch["completion_mask"]
    return loss + loss.detach() * (drawn_BK.sum() - drawn_BK.sum().detach()), *rest


def argument(module: Any, name: str, **changes: Any) -> Mutant:
    """Another argument in what `module.name` is called with or returns."""
    if name == "trainer_arguments":
        return lambda patch, _: around(patch, module, name, lambda original, *args: {**original(*args), **changes})
    return lambda patch, _: around(patch, module, name, lambda original, **given: original(**{**given, **changes}))


def loss_function(change: Callable[..., Any]) -> Mutant:
    return lambda patch, _: around(patch, distillation_trainer, "_chunked_divergence_loss", change)


def unclipped(patch: pytest.MonkeyPatch, trainer: Any) -> None:
    for bound in ("epsilon_low", "epsilon_high"):
        patch.setattr(trainer, bound, 9.0)


#: Mutants of what every trainer is given.
COMMON: dict[str, Mutant] = {
    "the padding of completions counts": on_batch(lambda b: {"completion_mask": torch.ones_like(b["completion_mask"])}),
    "the padding of prompts is attended": on_batch(lambda b: {"prompt_mask": torch.ones_like(b["prompt_mask"])}),
    "prompt tokens count": on_batch(prompt_included),
    "cut-off rollouts do not count": on_batch(cut_off_dropped),
    "the end of sequence does not count": on_batch(end_dropped),
    "one token too many in the mean": on_batch(lambda b: {"num_items_in_batch": b["num_items_in_batch"] + 1}),
}
BRIDGE: dict[str, Mutant] = {
    **COMMON,
    "the direction is swapped": lambda patch, trainer: patch.setattr(trainer, "beta", 1 - trainer.beta),
    "between the two directions": put("beta", 0.5),
    "the temperature is lost": put("temperature", 1.0),
    "labels are shifted": late("_get_last_hidden_state"),
    "a gradient through sampling": lambda patch, trainer: around(patch, trainer, "_compute_loss", through_sampling),
    "the mean is over sequences": loss_function(sequence_mean),
}
GRPO: dict[str, Mutant] = {
    **COMMON,
    "the advantage's sign": on_batch(lambda b: {"advantages": -b["advantages"]}),
    "another rollout's advantage": on_batch(lambda b: {"advantages": b["advantages"].roll(1)}),
    "no group baseline": on_batch(lambda b: {"advantages": b["advantages"] + 0.1}),
    "no group normalisation": put("scale_rewards", "none"),
    "normalised over the batch": put("scale_rewards", "batch"),
    "groups of another size": put("num_generations", 2),
    "labels are shifted": late("_get_per_token_logps_and_entropies"),
    "the mean is over sequences": put("loss_type", "grpo"),
    "divided by the longest": put("loss_type", "dr_grpo"),
    "the upper clip is the lower": put("epsilon_high", 0.2),
    "the lower clip is the upper": put("epsilon_low", 0.28),
    "clips are lost": unclipped,
    "the old policy is lost": on_batch(lambda _: {"old_per_token_logps": None}),
    "the reference KL is lost": put("beta", 0.0),
    "the policy is its own reference": lambda patch, trainer: patch.setattr(trainer, "ref_model", trainer.model),
}
#: Mutants of the stages' own modules: the trainer is made anew.
BRIDGE_STAGE: dict[str, Mutant] = {
    "the warmup's direction": lambda patch, _: patch.setattr(warmup, "FORWARD", distillation.REVERSE),
    "OPD's direction": lambda patch, _: patch.setattr(opd, "REVERSE", distillation.FORWARD),
    "the plan's temperature is lost": argument(distillation, "trainer_arguments", temperature=1.0),
}
GRPO_STAGE: dict[str, Mutant] = {
    "the plan's temperature is lost": argument(grpo, "trainer_arguments", temperature=1.0),
    "the plan's loss type is lost": argument(grpo, "GRPOConfig", loss_type="grpo"),
    "the plan's scaling is lost": argument(grpo, "GRPOConfig", scale_rewards="none"),
    "the plan's upper clip is lost": argument(grpo, "GRPOConfig", epsilon_high=None),
    "the plan's reference KL is lost": argument(grpo, "GRPOConfig", beta=0.0),
    "cut-off rollouts are masked": argument(grpo, "GRPOConfig", mask_truncated_completions=True),
    "a biased gradient of the reference KL": argument(grpo, "GRPOConfig", use_bias_correction_kl=False),
    "sequence-level ratios": argument(grpo, "GRPOConfig", importance_sampling_level="sequence"),
}
GRPO_ACCUMULATION = argument(grpo, "GRPOConfig", loss_type="bnpo")
"""Every micro-batch counts alike."""


def of_logits(change: Callable[..., Any]) -> Mutant:
    """`change(logits, model, prompt, completion)`, where gate C2 takes the logits of a completion's tokens."""
    return lambda patch, _: around(patch, kl, "_logits", change)


def of_sums(change: Callable[..., Any]) -> Mutant:
    return lambda patch, _: around(patch, kl, "_sums", change)


GATE: dict[str, Mutant] = {
    "the direction is swapped": of_sums(lambda original, s, t, tau: original(t, s, tau)),
    "the temperature is lost": of_sums(lambda original, s, t, _: original(s, t, 1.0)),
    "labels are shifted": of_logits(lambda original, m, p, c: original(m, [*p, c[0]], [*c[1:], EOS])),
    "prompt tokens count": of_logits(lambda original, m, p, c: original(m, p[:-1], [p[-1], *c])),
    "the end does not count": of_logits(lambda original, m, p, c: original(m, p, c)[:-1]),
}
