"""How far student and teacher are apart, on the student's own rollouts: what gate C2 is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2d.plan.document import Sampling
from s2d.rollouts.transformers_engine import TransformersEngine

#: Tokens whose full distributions exist in fp32 at once.
CHUNK = 256


@dataclass(frozen=True)
class KlMeasurement:
    """Means over completion tokens; KL and entropy in nats, full vocabulary, at the sampling temperature."""

    reverse_kl: float
    forward_kl: float
    student_entropy: float
    top_token_agreement: float
    rollouts: int
    tokens: int
    mean_completion_tokens: float
    truncated: float

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def measure_kl(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    max_tokens: int,
    batch_size: int,
    seed: int,
) -> KlMeasurement:
    """Draw one student rollout a prompt (token ids) and score each of its tokens under both models.

    One sequence is scored at a time, so that no padding enters and the logits of only one sequence exist, in the
    models' dtype; fp32 distributions exist for `CHUNK` tokens at a time.
    """
    engine = TransformersEngine(student, tokenizer, batch_size)
    drawn = engine.generate(prompts, samples=1, sampling=sampling, max_tokens=max_tokens, seed=seed)
    rollouts = [group[0] for group in drawn]
    was_training = student.training
    student.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            s_KV, t_KV = (_logits(model, prompt, rollout.ids) for model in (student, teacher))
            for s_kV, t_kV in zip(torch.split(s_KV, CHUNK), torch.split(t_KV, CHUNK), strict=True):
                sums += _sums(s_kV, t_kV, sampling.temperature).double().cpu()
    student.train(was_training)
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    reverse, forward, entropy, agree = (sums / tokens).tolist()
    return KlMeasurement(
        reverse_kl=reverse,
        forward_kl=forward,
        student_entropy=entropy,
        top_token_agreement=agree,
        rollouts=len(rollouts),
        tokens=tokens,
        mean_completion_tokens=tokens / len(rollouts),
        truncated=sum(rollout.truncated for rollout in rollouts) / len(rollouts),
    )


def _logits(model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int]) -> torch.Tensor:
    """(K, V): the logits that predict each of the K completion tokens."""
    ids_1T = torch.tensor([[*prompt, *completion]], device=model.device)
    keep = len(completion) + 1
    logits_KV: torch.Tensor = model(input_ids=ids_1T, logits_to_keep=keep).logits[0, :-1]
    return logits_KV


def _sums(s_KV: torch.Tensor, t_KV: torch.Tensor, temperature: float) -> torch.Tensor:
    """(4,): `per_token`, summed over the K tokens."""
    return torch.stack([values_K.sum() for values_K in per_token(s_KV, t_KV, temperature)])


def per_token(
    s_KV: torch.Tensor, t_KV: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(K,) each: reverse KL, forward KL, student entropy, and whether both have the same top token."""
    log_s_KV, log_t_KV = (torch.log_softmax(logits.float() / temperature, dim=-1) for logits in (s_KV, t_KV))
    gap_KV = log_s_KV - log_t_KV
    reverse_K = (log_s_KV.exp() * gap_KV).sum(-1)
    forward_K = (log_t_KV.exp() * -gap_KV).sum(-1)
    entropy_K = -(log_s_KV.exp() * log_s_KV).sum(-1)
    agree_K = (log_s_KV.argmax(-1) == log_t_KV.argmax(-1)).float()
    return reverse_K, forward_K, entropy_K, agree_K
