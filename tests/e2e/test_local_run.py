"""A plan run from the command line's own function: the same result every time, also when it is interrupted."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path

import pytest
import warm_stages
from tiny import labels, plan_for
from traces import metrics, rewards, weights

from s2d.errors import InvalidPlan
from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.report.document import Report
from s2d.runner.local import run_plan
from s2d.runner.task import StageResult

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")


@pytest.fixture(scope="module")
def plan(upload: Path) -> Plan:
    return plan_for(upload)


@pytest.fixture(scope="module")
def whole(plan: Plan, upload: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[NewEvent]]:
    """One uninterrupted run: its folder and its events."""
    out, events = tmp_path_factory.mktemp("runs") / "whole", []
    assert run_plan(plan, upload, out, events.append, command=warm_stages.command).state == "succeeded"
    return out, events


def test_every_stage_reports_what_it_did(whole: tuple[Path, list[NewEvent]], plan: Plan) -> None:
    out, events = whole
    kinds = list(plan.ids())
    assert [event.stage for event in events if event.type == "stage" and event.data["state"] == "succeeded"] == kinds
    steps = {
        kind: StageResult.model_validate_json((out / "stages" / kind / "result.json").read_text()) for kind in kinds
    }
    assert {kind: steps[kind].steps for kind in ("teacher_rl", "opd", "student_rl", "direct_grpo")} == {
        "teacher_rl": 6, "opd": 4, "student_rl": 4, "direct_grpo": 4,
    }  # fmt: skip
    assert 4 <= steps["warmup"].steps <= 6
    gates = {event.data["gate"] for event in events if event.type == "gate"}
    assert gates == {"c1", "c2"}
    seen = {(event.stage, name) for event in events if event.type == "metrics" for name in event.data["metrics"]}
    rl = {"reward_mean", "reward_std", "groups_without_signal", "entropy", "completion_tokens_mean", "truncated"}
    bridge = {"forward_kl", "reverse_kl", "entropy", "completion_tokens_mean", "truncated"}
    common = {"tokens_per_second", "learning_rate", "loss", "grad_norm"}
    for stage in kinds:
        wanted = {"teacher_rl": rl, "student_rl": rl, "direct_grpo": rl, "warmup": bridge, "opd": bridge}.get(stage)
        if wanted:
            assert {(stage, name) for name in wanted | common} <= seen


def test_the_report_counts_the_labels_that_were_drawn(whole: tuple[Path, list[NewEvent]], plan: Plan) -> None:
    out, _ = whole
    report = Report.model_validate_json((out / "report" / "report.json").read_text())
    used = {arm.model: arm.labels_used for arm in report.arms}
    assert used == {
        "base_teacher": 0, "rl_teacher": 48, "base_student": 0, "warmup_student": 48, "opd_student": 48,
        "rl_student": 80, "direct_grpo": 32,
    }, "6 x 8, 4 x 8 and 4 x 8 problems were drawn: fewer than the plan set aside"  # fmt: skip
    assert all(arm.low <= arm.avg_at_k <= arm.high and arm.problems == 32 for arm in report.arms)
    assert {name: digest for name, digest in report.provenance.data_sha256.items() if name == "upload"} == {
        "upload": plan.data.file_sha256
    }
    text = (out / "report" / "report.md").read_text()
    for picture in ("accuracy.png", "curves.png"):
        assert picture in text
        assert (out / "report" / picture).read_bytes().startswith(b"\x89PNG")


def test_roles_share_no_problem(whole: tuple[Path, list[NewEvent]]) -> None:
    split = json.loads((whole[0] / "data" / "split.json").read_text())["ids"]
    prompts = set(split.pop("prompts"))
    assert sum(map(len, split.values())) == len(set().union(*split.values()))
    assert not prompts & (set(split["student_rl"]) | set(split["validation"]) | set(split["test"]))


@pytest.mark.slow
def test_the_same_plan_gives_the_same_metrics_and_weights(
    whole: tuple[Path, list[NewEvent]], plan: Plan, upload: Path, tmp_path: Path
) -> None:
    run_plan(plan, upload, tmp_path / "again", lambda _: None, command=warm_stages.command)
    assert metrics(tmp_path / "again") == metrics(whole[0])
    assert weights(tmp_path / "again") == weights(whole[0])
    assert rewards(tmp_path / "again") == rewards(whole[0])


def test_stopped_in_every_training_stage_it_ends_the_same(
    whole: tuple[Path, list[NewEvent]], plan: Plan, upload: Path, tmp_path: Path
) -> None:
    """Told to stop at step 2; weights equal the uninterrupted run's. tests/faults/test_training.py kills."""
    out = tmp_path / "stopped"
    stopped: set[str] = set()
    resumed: set[str | None] = set()
    stop = threading.Event()

    def harm(event: NewEvent) -> None:
        if event.message.startswith("resuming from checkpoint-"):
            resumed.add(event.stage)
        if event.type == "metrics" and event.step == 2 and event.stage and event.stage not in stopped:
            stopped.add(event.stage)
            stop.set()

    outcomes = []
    for _ in range(6):
        stop.clear()
        outcomes.append(run_plan(plan, upload, out, harm, stopping=stop.is_set, command=warm_stages.command).state)
        if outcomes[-1] != "interrupted":
            break
    assert stopped == {"teacher_rl", "warmup", "opd", "student_rl", "direct_grpo"}
    assert outcomes == ["interrupted"] * 5 + ["succeeded"]
    # A shorter one may be done before it hears of it.
    assert "teacher_rl" in resumed
    assert weights(out) == weights(whole[0])
    assert metrics(out) == metrics(whole[0])
    assert rewards(out) == rewards(whole[0])


def test_a_stage_killed_just_before_its_result_trains_no_step_more(
    whole: tuple[Path, list[NewEvent]], plan: Plan, upload: Path, tmp_path: Path
) -> None:
    """The last checkpoint of a warmup that C2 has ended is whole; resuming from it must only save the model."""
    out = tmp_path / "late"
    shutil.copytree(whole[0], out)
    (out / "stages" / "warmup" / "result.json").unlink()
    shutil.rmtree(out / "models" / "warmup_student")
    events: list[NewEvent] = []
    assert run_plan(plan, upload, out, events.append, command=warm_stages.command).state == "succeeded"
    assert [event.stage for event in events if event.type == "checkpoint"] == []
    assert [event.step for event in events if event.type == "metrics"] == []
    assert weights(out) == weights(whole[0])


def test_a_failed_gate_stops_the_job_with_its_numbers(upload: Path, tmp_path: Path) -> None:
    plan = plan_for(
        upload, on_gate_failure="stop", gates={"c1": {"k": 2, "min_gain": 0.99}}, controls=[],
        stages={"teacher_rl": {"steps": 1, "prompts_per_step": 8, "group_size": 4}},
    )  # fmt: skip
    outcome = run_plan(plan, upload, tmp_path / "out", lambda _: None, command=warm_stages.command)
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert outcome.error["code"] == "gate_c1"
    assert "24 validation problems" in outcome.error["message"]
    assert outcome.report is not None
    report = Report.model_validate_json(outcome.report.read_text())
    assert not report.complete
    assert [gate.passed for gate in report.gates] == [False]
    assert not (tmp_path / "out" / "stages" / "warmup").exists()


def test_a_folder_of_another_plan_is_refused(whole: tuple[Path, list[NewEvent]], upload: Path) -> None:
    other = plan_for(upload, seed=1)
    with pytest.raises(InvalidPlan, match="another plan"):
        run_plan(other, upload, whole[0], lambda _: None)
