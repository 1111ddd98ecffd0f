"""Which tokens of a rollout a bridge stage trains on: all, or the informative share of them (TIP, arXiv 2604.14084).

Informative are tokens where the student is undecided and those where it is confidently wrong: low entropy, far from the
teacher. One score holds both, 1 − (1 − h)(1 − d), with entropy h and divergence d as shares of their largest values in
the rollout. Each rollout keeps its own share, so the choice depends neither on the micro-batch nor on other rollouts.
"""

from __future__ import annotations

import torch

from s2d.evaluate.kl import CHUNK, per_token


def kept_tokens(mask_BK: torch.Tensor, share: float) -> torch.Tensor:
    """(B,): how many tokens each rollout keeps; at least one of a rollout that has any."""
    return (mask_BK.sum(-1).double() * share).ceil().long()


def informative(entropy_BK: torch.Tensor, kl_BK: torch.Tensor, mask_BK: torch.Tensor, share: float) -> torch.Tensor:
    """(B, K) of 0 and 1: the `share` of each rollout's tokens with the highest score; of equals the first."""
    h_BK, d_BK = (_of_largest(values.masked_fill(mask_BK == 0, 0.0)) for values in (entropy_BK, kl_BK))
    # In this form the largest of either kind scores 1 to the bit, whatever the other is: equals stay equals.
    score_BK = (1.0 - (1.0 - h_BK) * (1.0 - d_BK)).masked_fill(mask_BK == 0, -1.0)
    order_BK = score_BK.argsort(dim=-1, descending=True, stable=True)
    rank_BK = order_BK.argsort(dim=-1)
    return (rank_BK < kept_tokens(mask_BK, share).unsqueeze(-1)).to(mask_BK.dtype)


def _of_largest(values_BK: torch.Tensor) -> torch.Tensor:
    # Rounding can leave a KL of nought slightly negative.
    values_BK = values_BK.clamp(min=0.0)
    return values_BK / values_BK.amax(-1, keepdim=True).clamp(min=torch.finfo(values_BK.dtype).tiny)


def entropy_and_kl(
    heads: tuple[torch.nn.Module, torch.nn.Module],
    hidden: tuple[torch.Tensor, torch.Tensor],
    temperature: float,
    *,
    reverse: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) each: the student's entropy and the KL between student and teacher, nats; no gradient.

    Args:
        heads: output projections of student and teacher.
        hidden: their last hidden states, (B, K, H) each.
        reverse: KL(student ‖ teacher), else KL(teacher ‖ student).
    """
    flat_s_NH, flat_t_NH = (one.flatten(0, 1) for one in hidden)
    found = []
    with torch.no_grad():
        for s_kH, t_kH in zip(torch.split(flat_s_NH, CHUNK), torch.split(flat_t_NH, CHUNK), strict=True):
            reverse_k, forward_k, entropy_k, _ = per_token(heads[0](s_kH), heads[1](t_kH), temperature)
            found.append(torch.stack([entropy_k, reverse_k if reverse else forward_k]))
    entropy_BK, kl_BK = torch.cat(found, dim=-1).view(2, *hidden[0].shape[:2])
    return entropy_BK, kl_BK
