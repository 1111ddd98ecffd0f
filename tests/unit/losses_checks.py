"""The checks that a stage's loss must pass. Each returns what differs from the reference, so a mutant can fail it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from losses_reference import Direction, Grpo, Outcome, Sample, grpo, kl, largest_ratio, log_probs, mismatches, outcome
from losses_replay import one_batch, one_step
from losses_samples import EOS, LONGEST, TOKENIZER, asked
from losses_stages import exact, prepare, trainer_of

from s2d.evaluate import kl as gate_c2
from s2d.plan.document import Sampling
from s2d.rollouts.engine import Rollout

DIRECTIONS: dict[str, Direction] = {"warmup": "forward", "opd": "reverse"}


def wanted_bridge(name: str, samples: Sequence[Sample], tau: float) -> Outcome:
    student = exact("student")
    return outcome(kl(student, exact("teacher"), samples, DIRECTIONS[name], tau), student)


def wanted_grpo(samples: Sequence[Sample], settings: Grpo, policy: str = "student") -> Outcome:
    return outcome(grpo(exact(policy), exact("student"), samples, settings), exact(policy))


def bridge_batch(trainer: Any, name: str, samples: Sequence[Sample], tau: float) -> list[str]:
    """One batch of a bridge's trainer against the formula."""
    trainer.replay.samples = samples
    return mismatches(one_batch(trainer, rows_of(samples)), wanted_bridge(name, samples, tau))


def grpo_batch(trainer: Any, samples: Sequence[Sample], settings: Grpo, policy: str = "student") -> list[str]:
    """One batch of a GRPO trainer, its weights those of `policy`, against the formula."""
    trainer.model.load_state_dict(exact(policy).state_dict())
    trainer.replay.samples, trainer.replay.policy = samples, exact(policy)
    # The KL estimate's gradient is a difference of two terms as large as π_ref/π, of each of which fp32 loses 2^-23.
    lost = 2**-23 * largest_ratio(exact(policy), exact("student"), samples, settings.tau) if settings.beta else 0.0
    wanted = wanted_grpo(samples, settings, policy)
    return mismatches(one_batch(trainer, rows_of(samples)), wanted, rtol=1e-4 + lost)


def rows_of(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    return [
        {"prompt": [{"role": "user", "content": asked(s)}], "completion_ids": list(s.completion), "answer": "0"}
        for s in samples
    ]


def bridge_trainer(folder: Path, name: str, samples: Sequence[Sample], tau: float = 1.0, batch: int = 8) -> Any:
    """The trainer whose optimizer step is these rollouts, `batch` in one forward pass."""
    changes: dict[str, Any] = {
        "sequences_per_step": len(samples),
        "per_device_batch_size": batch,
        "gradient_accumulation": len(samples) // batch,
        "sampling": Sampling(temperature=tau),
    }
    return trainer_of(prepare(folder, name, samples, **changes), name, samples)


def grpo_trainer(folder: Path, samples: Sequence[Sample], settings: Grpo, batch: int = 8) -> Any:
    """The same for GRPO; rollouts of one prompt stand together."""
    changes = grpo_changes(samples, settings) | {
        "per_device_batch_size": batch,
        "gradient_accumulation": len(samples) // batch,
    }
    return trainer_of(prepare(folder, "teacher_rl", samples, **changes), "teacher_rl", samples)


def grpo_changes(samples: Sequence[Sample], settings: Grpo) -> dict[str, Any]:
    """The stage's fields for these settings."""
    return {
        "prompts_per_step": len(samples) // settings.group,
        "group_size": settings.group,
        "loss_type": settings.aggregation,
        "scale_rewards": settings.scale,
        "epsilon": settings.low,
        "epsilon_high": settings.high,
        "beta": settings.beta,
        "sampling": Sampling(temperature=settings.tau),
    }


def bridge_step(folder: Path, name: str, samples: Sequence[Sample], batch: int, tau: float = 1.0) -> list[str]:
    """A whole optimizer step of micro-batches of `batch`, on the stage's own data, against the formula."""
    trainer = bridge_trainer(folder, name, samples, tau, batch)
    return mismatches(one_step(trainer), wanted_bridge(name, samples, tau))


def grpo_step(folder: Path, samples: Sequence[Sample], settings: Grpo, batch: int) -> list[str]:
    trainer = grpo_trainer(folder, samples, settings, batch)
    trainer.replay.policy = exact("student")
    return mismatches(one_step(trainer), wanted_grpo(samples, settings))


def gate(samples: Sequence[Sample], tau: float, teacher: str = "near") -> list[str]:
    """What gate C2 measures on these rollouts of the student, against the formulas."""
    drawn = [[Rollout(ids=list(s.completion), truncated=s.completion[-1] != EOS)] for s in samples]
    engine = SimpleNamespace(generate=lambda *_, **__: drawn)
    with patch.object(gate_c2, "TransformersEngine", lambda *_: engine):
        measured = gate_c2.measure_kl(
            exact("student"),
            exact(teacher),
            TOKENIZER,
            [s.prompt for s in samples],
            sampling=Sampling(temperature=tau),
            max_tokens=LONGEST,
            batch_size=2,
            seed=0,
        )
    got, wanted = measured.as_dict(), wanted_gate(samples, tau, teacher)
    return [
        f"{key} {got[key]:.7g}, not {value:.7g}"
        for key, value in wanted.items()
        if not math.isclose(got[key], value, rel_tol=1e-5, abs_tol=1e-6)
    ]


def wanted_gate(samples: Sequence[Sample], tau: float, teacher: str) -> dict[str, float]:
    pair = exact("student"), exact(teacher)
    with torch.no_grad():
        reverse, forward = (kl(*pair, samples, direction, tau).item() for direction in ("reverse", "forward"))
        s_NV, t_NV = (torch.cat([log_probs(model, s, tau) for s in samples]) for model in pair)
    lengths = [len(s.completion) for s in samples]
    return {
        "reverse_kl": reverse,
        "forward_kl": forward,
        "student_entropy": -(s_NV.exp() * s_NV).sum(-1).mean().item(),
        "top_token_agreement": (s_NV.argmax(-1) == t_NV.argmax(-1)).double().mean().item(),
        "rollouts": len(samples),
        "tokens": sum(lengths),
        "mean_completion_tokens": sum(lengths) / len(samples),
        "truncated": sum(s.completion[-1] != EOS for s in samples) / len(samples),
    }
