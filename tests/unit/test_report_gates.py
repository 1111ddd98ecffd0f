"""What the report says that a job did after a gate, and how long the warmup waited for C2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from plan_pair import CPU, policy, write_pair

from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.report.build import build
from s2d.report.document import Gate, Report
from s2d.report.markdown import to_markdown
from s2d.runner.layout import JobLayout
from s2d.runner.task import GateResult, StageResult


def job(root: Path, on_failure: str) -> tuple[JobLayout, Plan]:
    """A job's folder in which nothing has run."""
    teacher, student = write_pair(root / "pair")
    asked = {"teacher": str(teacher), "student": str(student), "labeled_budget": 400, "on_gate_failure": on_failure}
    plan = make_plan(read_request({**asked, "controls": ["raw_teacher_bridge"]}), None, CPU, policy(root))
    layout = JobLayout(root / "job")
    layout.root.mkdir()
    layout.plan.write_text(plan.model_dump_json())
    return layout, plan


def c2(step: int, kl: float, passed: bool) -> GateResult:
    measured = {"step": step, "reverse_kl": kl, "top_token_agreement": 0.75}
    return GateResult(gate="c2", passed=passed, measured=measured, message=f"C2 after {step}")


def c1(passed: bool) -> GateResult:
    return GateResult(gate="c1", passed=passed, measured={"gain": 0.1}, message="C1")


def finish(layout: JobLayout, plan: Plan, stage: str, *attempts: list[GateResult]) -> None:
    """The stage's result with its last gate, and an event file an attempt."""
    folder = layout.stage(stage)
    folder.mkdir(parents=True)
    for number, gates in enumerate(attempts, start=1):
        lines = [event(stage, gate).model_dump_json() + "\n" for gate in gates]
        (folder / f"events-{number:03d}.jsonl").write_text("".join(lines))
    result = StageResult(stage=stage, kind=plan.stage(stage).kind, gate=attempts[-1][-1])
    layout.result(stage).write_text(result.model_dump_json())


def event(stage: str, gate: GateResult) -> NewEvent:
    data = gate.model_dump(exclude={"message"})
    return NewEvent(type="gate", stage=stage, step=gate.measured.get("step"), message=gate.message, data=data)


def gates_of(layout: JobLayout) -> dict[str, Gate]:
    return {gate.stage: gate for gate in build(layout).gates}


@pytest.mark.parametrize(
    ("passed", "on_failure", "decided"),
    [
        (True, "stop", "went on"),
        (True, "continue", "went on"),
        (False, "stop", "stopped"),
        (False, "continue", "went on although it failed, as asked"),
    ],
)
def test_the_decision_is_told(tmp_path: Path, passed: bool, on_failure: str, decided: str) -> None:
    layout, plan = job(tmp_path, on_failure)
    finish(layout, plan, "teacher_rollouts", [c1(passed)])
    finish(layout, plan, "warmup", [c2(30, 0.4, passed)])
    gates = gates_of(layout)
    assert gates["teacher_rollouts"].decided == gates["warmup"].decided == decided
    assert f"| {decided} |" in to_markdown(build(layout), [])


@pytest.mark.parametrize("passed", [True, False])
def test_a_controls_gate_decides_nothing(tmp_path: Path, passed: bool) -> None:
    layout, plan = job(tmp_path, "stop")
    finish(layout, plan, "raw_warmup", [c2(30, 0.4, passed)])
    assert gates_of(layout)["raw_warmup"].decided == "measured only"


def test_every_check_of_the_warmup_is_told_once(tmp_path: Path) -> None:
    """Killed after step 40, resumed from a checkpoint at 35: what was measured again counts with its last values."""
    layout, plan = job(tmp_path, "stop")
    finish(layout, plan, "teacher_rollouts", [c1(True)])
    first = [c2(30, 0.9, False), c2(35, 0.8, False), c2(40, 0.71, False)]
    finish(layout, plan, "warmup", first, [c2(40, 0.7, False), c2(45, 0.4, True)])
    gates = gates_of(layout)
    assert gates["teacher_rollouts"].checks == []
    told = [(one.step, one.reverse_kl, one.top_token_agreement, one.passed) for one in gates["warmup"].checks]
    assert told == [(30, 0.9, 0.75, False), (35, 0.8, 0.75, False), (40, 0.7, 0.75, False), (45, 0.4, 0.75, True)]
    page = to_markdown(build(layout), [])
    assert "| went on; warmup prolonged from 30 to 45 steps |" in page
    assert "| warmup | 40 | 0.700 | 75.0 % | does not hold |" in page
    assert "| warmup | 45 | 0.400 | 75.0 % | holds |" in page


def test_a_warmup_that_was_checked_once_was_not_prolonged(tmp_path: Path) -> None:
    layout, plan = job(tmp_path, "stop")
    finish(layout, plan, "warmup", [c2(30, 0.4, True)])
    page = to_markdown(build(layout), [])
    assert "| went on |" in page
    assert "prolonged" not in page


def test_a_report_from_before_this_was_told_is_still_read(tmp_path: Path) -> None:
    layout, plan = job(tmp_path, "stop")
    finish(layout, plan, "warmup", [c2(30, 0.4, True)])
    document: dict[str, Any] = json.loads(build(layout).model_dump_json())
    assert document["gates"][0].keys() >= {"decided", "checks"}
    for name in ("decided", "checks"):
        del document["gates"][0][name]
    (gate,) = Report.model_validate(document).gates
    assert (gate.decided, gate.checks, gate.passed) == (None, [], True)
