"""What the demo's plan request carries: counts of labels and prompts, and each stage's hyperparameters.

They were chosen on validation problems, but for three early looks at a test set (`benchmarks/paper_tried.json`), for
pairs like the one under `assets/` on two CPU cores. They are overrides like any user's: no stage knows them. Each stage
has few steps, so that every one leaves the next something to improve. The direct arm has more optimizer
steps than all of the student's stages together.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

#: Holds the stored pair, `teacher/` and `student/`, as `python -m s2d.demo.pretrain` builds it.
ASSETS: Final = Path(__file__).parent / "assets"

LABELS: Final = {"teacher_rl": 512, "student_rl": 512, "validation": 256, "test": 1000}
UNLABELED_PROMPTS: Final = 8192

#: Tokens; a completion with full working has 14.
MAX_COMPLETION_TOKENS: Final = 20

#: Drawn from the policy's own distribution, in training and in evaluation.
SAMPLING: Final[dict[str, Any]] = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}

# No decay of the learning rate: the warmup's end is not known beforehand, and the other stages are short.
OPTIMIZER: Final[dict[str, Any]] = {
    **SAMPLING,
    "schedule": "constant_with_warmup",
    "warmup_steps": 5,
    "weight_decay": 0.0,
    "beta2": 0.99,
}
# One forward pass takes the whole step: at this size more passes cost more than the memory is worth.
GRPO: Final[dict[str, Any]] = {**OPTIMIZER, "prompts_per_step": 32, "group_size": 8, "per_device_batch_size": 256}
BRIDGE: Final[dict[str, Any]] = {**OPTIMIZER, "sequences_per_step": 64, "per_device_batch_size": 64}

TEACHER_RL: Final[dict[str, Any]] = {**GRPO, "steps": 16, "learning_rate": 3e-4}
TEACHER_ROLLOUTS: Final[dict[str, Any]] = {**SAMPLING, "prompts": 4096, "samples_per_prompt": 1, "batch_size": 1024}
WARMUP: Final[dict[str, Any]] = {**BRIDGE, "steps": 30, "max_steps": 90, "check_every": 15, "learning_rate": 1e-3}
OPD: Final[dict[str, Any]] = {**BRIDGE, "steps": 40, "learning_rate": 5e-4}
STUDENT_RL: Final[dict[str, Any]] = {**GRPO, "steps": 40, "learning_rate": 2e-4}
DIRECT_GRPO: Final[dict[str, Any]] = {**GRPO, "steps": 120, "learning_rate": 3e-4}
EVALUATE: Final[dict[str, Any]] = {**SAMPLING, "k": 4, "batch_size": 1024}

#: Tighter than the default: at this size the warmup comes much closer, and some students need more of it than others.
GATE_C2: Final[dict[str, Any]] = {"max_kl": 0.1}

#: The fields that the plan request has beside models, file and seed.
OPTIONS: Final[dict[str, Any]] = {
    "labels": LABELS,
    "bridge_prompts": UNLABELED_PROMPTS,
    "max_completion_tokens": MAX_COMPLETION_TOKENS,
    "controls": ["direct_grpo"],
    "gates": {"c2": GATE_C2},
    "stages": {
        "teacher_rl": TEACHER_RL,
        "teacher_rollouts": TEACHER_ROLLOUTS,
        "warmup": WARMUP,
        "opd": OPD,
        "student_rl": STUDENT_RL,
        "direct_grpo": DIRECT_GRPO,
        "evaluate": EVALUATE,
    },
}
