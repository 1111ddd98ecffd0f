"""Small models and plans for tests that need no skill from the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from s2d.demo.task import write_jsonl
from s2d.plan.document import Plan
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.runner.local import summary_of

DEMO = Path(__file__).resolve().parents[1] / "s2d" / "demo" / "assets"

#: A few steps of everything: enough to run all the code, too little to learn much.
SHORT: dict[str, Any] = {
    "controls": ["direct_grpo"],
    "on_gate_failure": "continue",
    "max_prompt_tokens": 64,
    "max_completion_tokens": 24,
    "hardware": {"device": "cpu", "cpu_threads": 1},
    "labels": {"teacher_rl": 64, "student_rl": 64, "validation": 24, "test": 32},
    "stages": {
        "teacher_rl": {"steps": 6, "prompts_per_step": 8, "group_size": 4, "save_every": 2, "learning_rate": 3e-4},
        "warmup": {"steps": 4, "max_steps": 6, "check_every": 1, "sequences_per_step": 32, "save_every": 2},
        "opd": {"steps": 4, "sequences_per_step": 32, "save_every": 2},
        "student_rl": {"steps": 4, "prompts_per_step": 8, "group_size": 4, "save_every": 2},
        "direct_grpo": {"steps": 4, "prompts_per_step": 8, "group_size": 4, "save_every": 2},
        "evaluate": {"k": 2},
    },
}


def labels(path: Path, labeled: int = 200, unlabeled: int = 100) -> Path:
    """A file of the demo's problems."""
    write_jsonl(path, labeled, unlabeled, 7)
    return path


def plan_for(upload: Path, *, models: Path = DEMO, **changes: Any) -> Plan:
    """The plan of a short run of the demo pair on this file."""
    data = summary_of(upload)
    pair = {"teacher": str(models / "teacher"), "student": str(models / "student")}
    request = read_request({**SHORT, **pair, "training_file": data.file_id, **changes})
    return make_plan(request, data, detect(), ModelPolicy(roots=(models,)))
