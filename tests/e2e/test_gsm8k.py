"""Human-written problems through all of it, with a pair that is far too small for them: C1 must say so."""

from __future__ import annotations

from pathlib import Path

import warm_stages
from tiny import plan_for

from s2d.events import NewEvent
from s2d.report.document import Report
from s2d.runner.local import run_plan

FEW = {
    "max_prompt_tokens": 192,
    "max_completion_tokens": 32,
    "bridge_prompts": 64,
    "labels": {"teacher_rl": 64, "student_rl": 64, "validation": 16, "test": 16},
    "gates": {"c2": {"max_kl": 50.0, "min_agreement": 0.0, "prompts": 4}},
    "controls": [],
    "stages": {
        name: {"steps": 2, **size, "save_every": 2}
        for name, size in {
            "teacher_rl": {"prompts_per_step": 4, "group_size": 4},
            "student_rl": {"prompts_per_step": 4, "group_size": 4},
            "warmup": {"sequences_per_step": 16, "max_steps": 2},
            "opd": {"sequences_per_step": 16},
        }.items()
    },
}


def test_c1_reports_that_the_teacher_did_not_improve_and_stops(gsm8k: Path, tmp_path: Path) -> None:
    plan = plan_for(gsm8k / "train.jsonl", **FEW, on_gate_failure="stop")
    assert plan.data.labeled == 7473
    outcome = run_plan(plan, gsm8k / "train.jsonl", tmp_path / "out", lambda _: None, command=warm_stages.command)
    assert outcome.error is not None
    assert outcome.error["code"] == "gate_c1"
    assert "gain" in outcome.error["message"]


def test_it_goes_on_to_the_end_when_asked_to(gsm8k: Path, tmp_path: Path) -> None:
    plan = plan_for(gsm8k / "train.jsonl", **FEW, on_gate_failure="continue")
    events: list[NewEvent] = []
    outcome = run_plan(plan, gsm8k / "train.jsonl", tmp_path / "out", events.append, command=warm_stages.command)
    assert outcome.state == "succeeded"
    assert outcome.report is not None
    report = Report.model_validate_json(outcome.report.read_text())
    assert [gate.gate for gate in report.gates if not gate.passed] == ["c1"]
    assert all(arm.avg_at_k < 0.2 for arm in report.arms)
    # Longer problems than the plan admits are left out, and said to be.
    assert {stage.kind: stage.dropped_prompts > 0 for stage in report.stages}["teacher_rl"]
