"""The numbers that the planner takes where the user fixes none, and where they come from (docs/plan.md)."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from s2d.plan.document import Model, Sampling


class LearningRates(NamedTuple):
    """Peak learning rates of AdamW by stage."""

    grpo: float
    student_rl: float
    warmup: float
    opd: float


#: The method's authors for GRPO and OPD; an ordinary fine-tuning rate for the warmup. Published OPD rates span
#: 1e-6 to 5e-5.
FULL = LearningRates(grpo=1e-6, student_rl=1e-6, warmup=1e-5, opd=1e-6)
#: Adapters take about ten times the rate of full fine-tuning; 1e-4 for OPD is the Tinker cookbook's.
LORA = LearningRates(grpo=1e-5, student_rl=1e-5, warmup=1e-4, opd=1e-4)
#: Models of some hundred thousand parameters learn at rates that would ruin large ones.
TINY = LearningRates(grpo=3e-4, student_rl=2e-4, warmup=2e-3, opd=1e-3)
TINY_PARAMETERS = 20_000_000

GROUP_SIZE = 8
OPD_WEIGHT_DECAY = 0.1
#: The authors' evaluation sampling.
EVALUATION = Sampling(temperature=0.7, top_p=0.8, top_k=20)

MAX_COMPLETION = 4096
MAX_PROMPT = 1024
MAX_BRIDGE_PROMPTS = 16_384
MAX_ROLLOUT_PROMPTS = 4096
#: With few prompts several rollouts of each are kept, up to so many in all or `MAX_SAMPLES` of each.
WANTED_ROLLOUTS, MAX_SAMPLES = 2048, 4
MAX_SEQUENCES = 64
MAX_PROMPTS_PER_STEP = 64
#: Below this a step's reward signal is thin: LoRA with more prompts comes first.
ENOUGH_PROMPTS, ENOUGH_SEQUENCES = 8, 16
GENERATION_BATCH = 256


def derive_seed(seed: int, name: str) -> int:
    """A seed in [0, 2^31) for one use, from the plan's seed and the use's name."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:4]) >> 1


def learning_rates(model: Model, *, lora: bool) -> LearningRates:
    if model.parameters < TINY_PARAMETERS:
        return TINY
    return LORA if lora else FULL


def per_step(rows: int, most: int) -> int:
    """Rows of one step: a power of two with at least 16 steps in a pass over `rows`, from 4 to `most`."""
    wanted = max(1, rows // 16)
    return min(rows, max(4, min(most, 1 << (wanted.bit_length() - 1))))


def grpo_steps(labels: int, prompts_per_step: int) -> int:
    """Four passes over the labels, 20 to 200 steps."""
    return _steps(4, labels, prompts_per_step, 20, 200)


def warmup_steps(rollouts: int, sequences_per_step: int) -> int:
    """Two passes over the stored rollouts, 20 to 150 steps."""
    return _steps(2, rollouts, sequences_per_step, 20, 150)


def opd_steps(prompts: int, sequences_per_step: int) -> int:
    """Two passes over the bridge prompts, 30 to 200 steps."""
    return _steps(2, prompts, sequences_per_step, 30, 200)


def evaluation_samples(test: int) -> int:
    """Completions per test problem: more where problems are few."""
    return 16 if test < 200 else 8 if test < 500 else 4


def _steps(passes: int, rows: int, each: int, least: int, most: int) -> int:
    return max(least, min(most, -(-passes * rows // each)))
