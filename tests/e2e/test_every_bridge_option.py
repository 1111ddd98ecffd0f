"""The bridge's options, all on at once, through a plan and its job."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import warm_stages
from tiny import SHORT, labels, plan_for

from s2d.runner.local import run_plan
from s2d.runner.task import StageResult


def test_a_bridge_with_every_option_on(tmp_path: Path) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    more = {"token_share": 0.5, "prefix_share": 0.25}
    stages = {name: SHORT["stages"][name] for name in ("teacher_rl", "warmup", "opd", "evaluate")}
    stages["teacher_rollouts"] = {"prompts": 64, "samples_per_prompt": 1}
    stages["warmup"] = {**stages["warmup"], **more, "score_once": True}
    stages["opd"] = {**stages["opd"], **more, "extrapolate": [0.5, 1, 2]}
    plan = plan_for(upload, controls=[], labels={**SHORT["labels"], "student_rl": 0}, stages=stages)
    out = tmp_path / "out"
    assert run_plan(plan, upload, out, lambda _: None, command=warm_stages.command).state == "succeeded"
    for stage in ("warmup", "opd"):
        (events,) = (out / "stages" / stage).glob("events-*.jsonl")
        told = [one["data"]["metrics"] for one in map(json.loads, events.read_text().splitlines()) if one["step"]
                and one["type"] == "metrics"]  # fmt: skip
        assert len(told) >= 4
        assert all(one["completion_tokens_mean"] <= 6 for one in told), "a quarter of 24"
        assert told[-1]["truncated"] > 0.5, "full working is longer"
    warmed = StageResult.model_validate_json((out / "stages" / "warmup" / "result.json").read_text())
    read = warmed.steps * plan.stage("warmup").sequences_per_step / 64
    assert warmed.data["teacher_tokens"] == pytest.approx(warmed.tokens / read, rel=0.1), "64 rollouts, each once"
    assert not (out / "stages" / "warmup" / "teacher").exists()
    result = StageResult.model_validate_json((out / "stages" / "opd" / "result.json").read_text())
    tried = result.data["extrapolation"]
    assert list(tried) == ["0", "0.5", "1", "2"][: len(tried)]
    assert len(tried) >= 2
    assert result.tokens > sum(one["completion_tokens_mean"] for one in told) * 32, "what was tried is counted"
