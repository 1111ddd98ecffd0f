"""The three losses in float64, written from the formulas: one unpadded sequence at a time, autograd for the gradient.

Nothing here knows a mask, a chunk, a micro-batch or a process: a trainer has to agree with it whatever it does for
speed. The models' own normalisation and rotary layers stay in fp32, as transformers writes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

Direction = Literal["forward", "reverse"]
"""`forward` is KL(teacher ‖ student), `reverse` is KL(student ‖ teacher)."""
EPS = 1e-4
"""ε in A = (r − mean r) / (std r + ε)."""


@dataclass(frozen=True)
class Sample:
    """One rollout: token ids; `ratios` are π/π_old of each token, empty where the rollout is on-policy."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    reward: float = 0.0
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A loss and its gradient for each parameter."""

    loss: float
    gradients: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Grpo:
    """What defines the objective. `group`: rollouts of a prompt. `longest`: the tokens that `dr_grpo` divides by."""

    group: int
    tau: float = 1.0
    aggregation: str = "dapo"
    scale: str = "group"
    low: float = 0.2
    high: float = 0.28
    beta: float = 0.0
    longest: int = 24


def log_probs(model: Any, sample: Sample, tau: float) -> torch.Tensor:
    """(K, V): log π(·|y_<t) at temperature `tau` for each of the K completion tokens."""
    logits_TV = model(input_ids=torch.tensor([[*sample.prompt, *sample.completion]])).logits[0]
    # Token t is predicted from one place before it.
    first = len(sample.prompt) - 1
    return torch.log_softmax(logits_TV[first : first + len(sample.completion)].double() / tau, -1)


def token_log_probs(model: Any, sample: Sample, tau: float) -> torch.Tensor:
    """(K,): log π(y_t|y_<t)."""
    every_KV = log_probs(model, sample, tau)
    return every_KV[torch.arange(len(sample.completion)), torch.tensor(sample.completion)]


def kl(student: Any, teacher: Any, samples: Sequence[Sample], direction: Direction, tau: float) -> torch.Tensor:
    """Mean over completion tokens of Σ_v p(v) (log p(v) − log q(v)); the rollouts y are constants."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for sample in samples:
        with torch.no_grad():
            teacher_KV = log_probs(teacher, sample, tau)
        student_KV = log_probs(student, sample, tau)
        p_KV, q_KV = (teacher_KV, student_KV) if direction == "forward" else (student_KV, teacher_KV)
        total = total + (p_KV.exp() * (p_KV - q_KV)).sum()
        tokens += len(sample.completion)
    return total / tokens


def advantages(rewards: Sequence[float], group: int, scale: str) -> list[float]:
    """A_i of consecutive groups; the standard deviation is the sample's (n − 1), over the group or the batch."""
    r_PG = torch.tensor(rewards, dtype=torch.float64).view(-1, group)
    centred_PG = r_PG - r_PG.mean(1, keepdim=True)
    if scale == "group":
        centred_PG = centred_PG / (r_PG.std(1, keepdim=True) + EPS)
    elif scale == "batch":
        centred_PG = centred_PG / (r_PG.std() + EPS)
    return centred_PG.flatten().tolist()


def grpo(policy: Any, reference: Any, samples: Sequence[Sample], settings: Grpo) -> torch.Tensor:
    """−J: the clipped surrogate and β times the k3 estimate of KL(policy ‖ reference), aggregated over tokens.

    `settings.group` samples of one prompt stand together.
    """
    signals = advantages([s.reward for s in samples], settings.group, settings.scale)
    per_sample = [_per_token(policy, reference, *pair, settings) for pair in zip(samples, signals, strict=True)]
    if settings.aggregation == "dapo":
        return torch.cat(per_sample).mean()
    if settings.aggregation == "grpo":
        return torch.stack([loss_K.mean() for loss_K in per_sample]).mean()
    assert settings.aggregation == "dr_grpo"
    return torch.cat(per_sample).sum() / (len(samples) * settings.longest)


def _per_token(policy: Any, reference: Any, sample: Sample, advantage: float, settings: Grpo) -> torch.Tensor:
    log_K = token_log_probs(policy, sample, settings.tau)
    ratio_K = (log_K - old_log_probs(log_K, sample)).exp()
    clipped_K = ratio_K.clamp(1 - settings.low, 1 + settings.high)
    loss_K = -torch.minimum(ratio_K * advantage, clipped_K * advantage)
    if settings.beta == 0:
        return loss_K
    with torch.no_grad():
        gap_K = token_log_probs(reference, sample, settings.tau)
    gap_K = gap_K - log_K
    # Weighted by π/π_old, the estimate's gradient is that of the KL itself; unweighted it is biased.
    return loss_K + settings.beta * ratio_K * (gap_K.exp() - gap_K - 1)


def largest_ratio(policy: Any, reference: Any, samples: Sequence[Sample], tau: float) -> float:
    """The largest π_ref/π of any token of the completions."""
    with torch.no_grad():
        gaps = [token_log_probs(reference, s, tau) - token_log_probs(policy, s, tau) for s in samples]
    return float(torch.cat(gaps).max().exp())


def old_log_probs(log_K: torch.Tensor, sample: Sample) -> torch.Tensor:
    """(K,): log π_old(y_t|y_<t), a constant: the policy's own value on-policy, else `ratios` away from it."""
    if not sample.ratios:
        return log_K.detach()
    return log_K.detach() - torch.tensor(sample.ratios, dtype=torch.float64).log()


def outcome(loss: torch.Tensor, model: Any) -> Outcome:
    """The loss with the gradient of every parameter of `model`."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    return Outcome(loss.item(), dict(zip(names, torch.autograd.grad(loss, parameters), strict=True)))


def mismatches(got: Outcome, wanted: Outcome, rtol: float = 1e-4, atol: float = 1e-6) -> list[str]:
    """What differs: nothing for an fp32 trainer that computes the loss `wanted`.

    A parameter's gradient may be off by `rtol` of its own largest element, and by `rtol` / 50 of the whole gradient's
    largest: fp32 sums are exact to the size of their terms, not of their result.
    """
    found = []
    if not abs(got.loss - wanted.loss) <= atol + rtol * abs(wanted.loss):
        found.append(f"loss {got.loss:.7g}, not {wanted.loss:.7g}")
    if got.gradients.keys() != wanted.gradients.keys():
        return [*found, f"gradients of {sorted(got.gradients.keys() ^ wanted.gradients.keys())}"]
    top = max(gradient.abs().max().item() for gradient in wanted.gradients.values())
    for name, gradient in wanted.gradients.items():
        off = (got.gradients[name].double() - gradient).abs().max().item()
        if not off <= atol + rtol * (gradient.abs().max().item() + top / 50):
            found.append(f"gradient of {name} off by {off:.3g}, largest element {gradient.abs().max().item():.3g}")
    return found
