"""What the demo's plan request carries: counts of labels and prompts, and each stage's hyperparameters.

They were chosen on validation problems, never on the test split, for the pair under `assets/` on two CPU cores. They
are overrides like any user's: no stage knows them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

#: Holds the stored pair, `teacher/` and `student/`, as `python -m s2d.demo.pretrain` builds it.
ASSETS: Final = Path(__file__).parent / "assets"

LABELS: Final = {"teacher_rl": 512, "student_rl": 512, "validation": 256, "test": 1000}
UNLABELED_PROMPTS: Final = 8192

SAMPLING: Final[dict[str, Any]] = {"temperature": 1.0, "max_completion_tokens": 16}

TEACHER_RL: Final[dict[str, Any]] = {
    "steps": 30,
    "prompts_per_step": 32,
    "group_size": 8,
    "learning_rate": 3e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 5,
}
