"""How far student and teacher are apart, on the student's own rollouts: what gate C2 is judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from s2d.plan.document import Sampling
from s2d.rollouts.transformers_engine import TransformersEngine


@dataclass(frozen=True)
class KlMeasurement:
    """Means over completion tokens; KL and entropy in nats, full vocabulary, at the sampling temperature."""

    reverse_kl: float
    forward_kl: float
    student_entropy: float
    top_token_agreement: float
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

    One sequence is scored at a time, so that no padding enters and the logits of only one sequence exist.
    """
    engine = TransformersEngine(student, tokenizer, batch_size)
    drawn = engine.generate(prompts, samples=1, sampling=sampling, max_tokens=max_tokens, seed=seed)
    rollouts = [group[0] for group in drawn]
    was_training = student.training
    student.eval()
    sums = torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for prompt, rollout in zip(prompts, rollouts, strict=True):
            log_s_KV = _log_probs(student, prompt, rollout.ids, sampling.temperature)
            log_t_KV = _log_probs(teacher, prompt, rollout.ids, sampling.temperature)
            sums += _sums(log_s_KV, log_t_KV).double().cpu()
    student.train(was_training)
    tokens = sum(len(rollout.ids) for rollout in rollouts)
    reverse, forward, entropy, agree = (sums / tokens).tolist()
    return KlMeasurement(
        reverse_kl=reverse,
        forward_kl=forward,
        student_entropy=entropy,
        top_token_agreement=agree,
        tokens=tokens,
        mean_completion_tokens=tokens / len(rollouts),
        truncated=sum(rollout.truncated for rollout in rollouts) / len(rollouts),
    )


def _log_probs(
    model: PreTrainedModel, prompt: Sequence[int], completion: Sequence[int], temperature: float
) -> torch.Tensor:
    """(K, V): log π(· | prompt, completion so far) for each of the K completion tokens."""
    ids_1T = torch.tensor([[*prompt, *completion]], device=model.device)
    keep = len(completion) + 1
    logits_KV = model(input_ids=ids_1T, logits_to_keep=keep).logits[0, :-1]
    return torch.log_softmax(logits_KV.float() / temperature, dim=-1)


def _sums(log_s_KV: torch.Tensor, log_t_KV: torch.Tensor) -> torch.Tensor:
    """(4,): reverse KL, forward KL, student entropy and top-token agreement, summed over the K tokens."""
    gap_KV = log_s_KV - log_t_KV
    reverse_K = (log_s_KV.exp() * gap_KV).sum(-1)
    forward_K = (log_t_KV.exp() * -gap_KV).sum(-1)
    entropy_K = -(log_s_KV.exp() * log_s_KV).sum(-1)
    agree_K = (log_s_KV.argmax(-1) == log_t_KV.argmax(-1)).float()
    return torch.stack([reverse_K.sum(), forward_K.sum(), entropy_K.sum(), agree_K.sum()])
