"""Adapters instead of full fine-tuning, in every training stage: stopped, resumed, merged into plain models."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import warm_stages
from safetensors.torch import load_file
from tiny import DEMO, SHORT, labels, plan_for

from s2d.events import NewEvent
from s2d.runner.local import run_plan


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_adapters_are_trained_resumed_and_merged(tmp_path: Path) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    stages = {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"}
    # Long enough to be told to stop on the way.
    stages["opd"] = {**stages["opd"], "steps": 20}
    plan = plan_for(upload, lora={"rank": 4, "alpha": 8}, controls=[], stages=stages)
    stop, seen = threading.Event(), list[NewEvent]()

    def once(event: NewEvent) -> None:
        seen.append(event)
        if event.stage == "opd" and event.step == 2 and event.type == "metrics":
            stop.set()

    out, warm = tmp_path / "out", warm_stages.command
    assert run_plan(plan, upload, out, once, stopping=stop.is_set, command=warm).state == "interrupted"
    checkpoints = out / "stages" / "opd" / "checkpoints"
    assert list(checkpoints.glob("checkpoint-*/adapter_model.safetensors")), "a checkpoint holds the adapters alone"
    seen.clear()
    assert run_plan(plan, upload, out, seen.append, command=warm).state == "succeeded"
    assert any(event.message.startswith("resuming from checkpoint-") for event in seen)
    for role, base in (("rl_teacher", "teacher"), ("rl_student", "student")):
        merged = load_file(out / "models" / role / "model.safetensors")
        before = load_file(DEMO / base / "model.safetensors")
        assert merged.keys() == before.keys()
        moved = [name for name, tensor in merged.items() if not tensor.float().equal(before[name].float())]
        assert moved
        assert all("_proj" in name for name in moved), "only the adapted matrices change"
