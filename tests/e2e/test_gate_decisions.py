"""What gate C2 decides in a job: when the warmup ends, and whether anything comes after it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import warm_stages
from tiny import SHORT, labels, plan_for

from s2d.evaluate.scores import Scores
from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.report.document import Report
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan
from s2d.runner.pipeline import Outcome
from s2d.runner.task import StageResult

STEPS, CAP = 2, 4


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")


@pytest.fixture(scope="module")
def drawn(upload: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job up to its teacher rollouts. C1 reads the scores that it finds: stage 1 has made the teacher all right."""
    out = tmp_path_factory.mktemp("runs") / "drawn"
    for model, reward in (("base_teacher", 0.0), ("rl_teacher", 1.0)):
        kept = Scores(ids=["0" * 32] * 8, rewards=[[reward]] * 8, completion_tokens=8, truncated=0.0, seconds=1.0)
        kept.save(JobLayout(out).evaluations / f"validation-{model}.json")
    assert run_until("teacher_rollouts", short_plan(upload), upload, out).state == "interrupted"
    return out


def short_plan(upload: Path, **c2: Any) -> Plan:
    """As little as leads to C2; a failed gate stops the job."""
    stages = {
        "teacher_rl": {"steps": 1, "prompts_per_step": 8, "group_size": 4},
        "teacher_rollouts": {"prompts": 32, "samples_per_prompt": 1},
        "warmup": {**SHORT["stages"]["warmup"], "steps": STEPS, "max_steps": CAP, "check_every": 1},
        "opd": {"steps": 1, "sequences_per_step": 8},
        "evaluate": {"k": 1},
    }
    gates = {"c1": {"k": 1}, "c2": {"prompts": 8, **c2}}
    share = {**SHORT["labels"], "student_rl": 0}
    return plan_for(upload, on_gate_failure="stop", gates=gates, controls=[], labels=share, stages=stages)


def run_until(stage: str, plan: Plan, upload: Path, out: Path) -> Outcome:
    """To the end of this stage and what is decided after it, unless the job ends by itself."""
    done: list[str | None] = []

    def note(event: NewEvent) -> None:
        if event.type == "stage" and event.data["state"] == "succeeded":
            done.append(event.stage)

    return run_plan(plan, upload, out, note, stopping=lambda: stage in done, command=warm_stages.command)


def go_on(drawn: Path, out: Path) -> Path:
    """The same job's folder for another bound of C2."""
    shutil.copytree(drawn, out)
    JobLayout(out).plan.unlink()
    return out


def test_a_warmup_whose_c2_holds_at_once_ends_before_its_cap(drawn: Path, upload: Path, tmp_path: Path) -> None:
    out = go_on(drawn, tmp_path / "out")
    outcome = run_until("warmup", short_plan(upload, max_kl=1e3, min_agreement=0.0), upload, out)
    assert (outcome.state, outcome.error) == ("interrupted", None), "the job would go on"
    result = StageResult.model_validate_json(JobLayout(out).result("warmup").read_text())
    assert result.steps == STEPS
    assert result.gate is not None
    assert (result.gate.passed, result.gate.measured["step"]) == (True, STEPS)


def test_a_job_whose_c2_fails_at_the_cap_stops_before_opd(drawn: Path, upload: Path, tmp_path: Path) -> None:
    out = go_on(drawn, tmp_path / "out")
    outcome = run_until("opd", short_plan(upload, max_kl=1e-9), upload, out)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["stage"]) == ("gate_c2", "warmup")
    assert f"C2 does not hold after {CAP} warmup steps" in outcome.error["message"]
    assert sorted(path.name for path in (out / "stages").iterdir()) == ["teacher_rl", "teacher_rollouts", "warmup"]
    assert outcome.report is not None
    c1, c2 = Report.model_validate_json(outcome.report.read_text()).gates
    assert (c1.decided, c1.checks) == ("went on", [])
    assert c2.decided == "stopped"
    assert [(check.step, check.passed) for check in c2.checks] == [(2, False), (3, False), (4, False)]
    for name in ("reverse_kl", "top_token_agreement"):
        assert getattr(c2.checks[-1], name) == c2.measured[name]
    assert "stopped; warmup prolonged from 2 to 4 steps" in outcome.report.with_name("report.md").read_text()
