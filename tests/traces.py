"""What a run left behind, for comparing two runs of one plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2d.stages.checkpoints import sha256_file

TRAINED = ("rl_teacher", "warmup_student", "opd_student", "rl_student", "direct_grpo")


def metrics(out: Path) -> dict[tuple[str, int], dict[str, float]]:
    """Every step's metrics but the speed; a step that was done twice counts with its last values."""
    found = {}
    for path in sorted(out.glob("stages/*/events-*.jsonl")):
        for event in map(json.loads, path.read_text().splitlines()):
            if event["type"] == "metrics":
                values = {name: v for name, v in event["data"]["metrics"].items() if name != "tokens_per_second"}
                found[event["stage"], event["step"]] = values
    return found


def weights(out: Path) -> dict[str, str]:
    return {role: sha256_file(out / "models" / role / "model.safetensors") for role in TRAINED}


def rewards(out: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text())["rewards"] for path in out.glob("evaluations/*.json")}
