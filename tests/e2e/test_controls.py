"""Every control arm through the runner, and the account that each stage must keep to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import warm_stages
from tiny import SHORT, labels, plan_for

from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.plan.graph import Account
from s2d.plan.names import Control
from s2d.report.document import Report
from s2d.runner.ledger import Ledger
from s2d.runner.local import run_plan
from s2d.runner.task import StageResult

RATES = [1e-5, 3e-4, 1e-3]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    """A short run of all arms; C2 is out of reach, so the warmup goes on to its cap."""
    root = tmp_path_factory.mktemp("controls")
    upload = labels(root / "rows.jsonl")
    stages: dict[str, Any] = {**SHORT["stages"]}
    stages["direct_grpo"] = {**stages["direct_grpo"], "learning_rates": RATES}
    plan = plan_for(
        upload,
        controls=get_args(Control),
        compute_matched=True,
        stages=stages,
        gates={"c2": {"max_kl": 1e-6, "prompts": 8}},
    )
    outcome = run_plan(plan, upload, root / "run", lambda _: None, command=warm_stages.command)
    assert outcome.state == "succeeded", outcome.error
    assert outcome.student == "rl_student"
    return plan, root / "run"


def result(out: Path, stage: str) -> StageResult:
    return StageResult.model_validate_json((out / "stages" / stage / "result.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_controls_make_as_many_steps_as_the_warmup_really_made(ran: tuple[Plan, Path]) -> None:
    plan, out = ran
    warmup, opd = result(out, "warmup").steps, result(out, "opd").steps
    assert warmup == plan.stage("warmup").max_steps > plan.stage("warmup").steps
    assert result(out, "raw_warmup").steps == result(out, "labeled_warmup").steps == warmup
    assert result(out, "opd_only").steps == warmup + opd
    assert result(out, "warmup_only").steps == opd


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_compute_matched_controls_end_at_the_same_flops(ran: tuple[Plan, Path]) -> None:
    _, out = ran
    arms = {arm.model: arm for arm in Report.model_validate_json((out / "report" / "report.json").read_text()).arms}
    assert arms["raw_teacher_bridge_compute"].flops == pytest.approx(arms["opd_student"].flops, rel=0.05)
    assert arms["opd_only_compute"].flops == pytest.approx(arms["opd_student"].flops, rel=0.15)
    chosen = result(out, "direct_grpo_select").data["chosen"]
    spent = result(out, chosen).flops + result(out, "direct_grpo_compute").flops
    assert spent == pytest.approx(arms["rl_student"].flops, rel=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_best_candidate_on_validation_is_kept(ran: tuple[Plan, Path]) -> None:
    _, out = ran
    data = result(out, "direct_grpo_select").data
    assert data["avg_at_k"][data["chosen"]] == max(data["avg_at_k"].values())
    assert len(data["avg_at_k"]) == len(RATES)
    kept, candidate = (out / "models" / name / "model.safetensors" for name in ("direct_grpo", data["chosen"]))
    assert kept.read_bytes() == candidate.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_arm_keeps_an_account(ran: tuple[Plan, Path]) -> None:
    plan, out = ran
    entries = Ledger(out / "ledger.jsonl").read()
    assert max(Counter((entry.arm, entry.label) for entry in entries).values()) == 1
    split = json.loads((out / "data" / "split.json").read_text())["ids"]
    for role in ("teacher_rl", "student_rl", "validation", "test"):
        own = {entry.label for entry in entries if (entry.arm, entry.role) == ("workflow", role)}
        assert own == set(split[role]), "every label row is there, with the stage that spent it"
    report = Report.model_validate_json((out / "report" / "report.json").read_text())
    told = {(one.arm, one.stage, one.role): one.labels for one in report.ledger}
    assert told[("cold_student_rl", "cold_student_rl", "student_rl")] == plan.data.labels.student_rl
    assert told[("replay_labels", "replay_labels", "teacher_rl")] == plan.data.labels.teacher_rl
    assert not [key for key in told if key[0] in ("replay", "opd_only", "warmup_only", "raw_teacher_bridge")]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_controls_gate_is_measured_and_stops_nothing(ran: tuple[Plan, Path]) -> None:
    report = Report.model_validate_json((ran[1] / "report" / "report.json").read_text())
    gates = {(gate.arm, gate.stage): gate for gate in report.gates}
    assert not gates[("workflow", "warmup")].passed
    assert {arm for arm, _ in gates} >= {"raw_teacher_bridge", "warmup_only", "labeled_bridge"}


@pytest.mark.parametrize("role", ["test", "validation", "student_rl"])
def test_a_stage_refuses_a_row_that_is_not_on_its_account(tmp_path: Path, role: str) -> None:
    upload = labels(tmp_path / "rows.jsonl")
    plan, out = plan_for(upload, controls=[], stages=without_control()), tmp_path / "run"

    def tamper(event: NewEvent) -> None:
        if event.type == "stage" and event.stage == "teacher_rl":
            data = out / "data"
            strange = (data / f"{role}.jsonl").read_text().splitlines(keepends=True)[0]
            with (data / "teacher_rl.jsonl").open("a") as file:
                file.write(strange)

    outcome = run_plan(plan, upload, out, tamper, command=warm_stages.command)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert outcome.error["code"] == "label_spent"
    assert f"belongs to {role}" in outcome.error["message"] or "belongs to no stage" in outcome.error["message"]


def test_the_bridge_refuses_a_prompt_that_is_held_out(tmp_path: Path) -> None:
    """Without its answer, which the bridge would not have read; tests/unit/test_bridge_prompts.py has every stage."""
    upload = labels(tmp_path / "rows.jsonl")
    stages = {**without_control(), "teacher_rl": {"steps": 1, "prompts_per_step": 8, "group_size": 4}}
    plan, out = plan_for(upload, controls=[], stages=stages, gates={"c1": {"k": 1}}), tmp_path / "run"

    def tamper(event: NewEvent) -> None:
        if event.type == "stage" and event.stage == "teacher_rollouts" and event.data["state"] == "running":
            strange = json.loads((out / "data" / "test.jsonl").read_text().splitlines()[0])
            with (out / "data" / "prompts.jsonl").open("a") as file:
                file.write(json.dumps({**strange, "answer": None}) + "\n")

    outcome = run_plan(plan, upload, out, tamper, command=warm_stages.command)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["stage"]) == ("label_spent", "teacher_rollouts")
    assert "belongs to test" in outcome.error["message"]
    assert not (out / "rollouts").exists() or not list((out / "rollouts").rglob("part-*"))


def test_a_label_that_another_stage_has_spent_stops_the_job(tmp_path: Path) -> None:
    upload = labels(tmp_path / "rows.jsonl")
    plan, out = plan_for(upload, controls=[], stages=without_control()), tmp_path / "run"

    def spend_before(event: NewEvent) -> None:
        if event.type == "stage" and event.stage == "teacher_rl" and event.data["state"] == "running":
            split = json.loads((out / "data" / "split.json").read_text())["ids"]
            Ledger(out / "ledger.jsonl").spend(Account("workflow", "other"), "test", split["validation"][:1])

    outcome = run_plan(plan, upload, out, spend_before, command=warm_stages.command)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert outcome.error["code"] == "label_spent"
    assert "was spent by other" in outcome.error["message"]


def without_control() -> dict[str, Any]:
    return {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"}
