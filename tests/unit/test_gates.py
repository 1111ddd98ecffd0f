"""What decides a gate, on numbers made by hand: C1 by the lower end of the gain, C2 by KL and agreement together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from plan_pair import CPU, policy, write_pair
from transformers import TrainerControl, TrainerState, TrainingArguments

from s2d.evaluate.kl import KlMeasurement
from s2d.evaluate.scores import Scores
from s2d.plan.document import Plan
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.runner.task import GateResult
from s2d.stages.teacher_rollouts import judge_c1
from s2d.stages.warmup import UntilC2, judge_c2

MakePlan = Callable[..., Plan]
BEFORE = {"reverse_kl": 2.0, "top_token_agreement": 0.1}


@pytest.fixture(scope="module")
def plan_with(tmp_path_factory: pytest.TempPathFactory) -> MakePlan:
    root = tmp_path_factory.mktemp("pair")
    teacher, student = write_pair(root)

    def make(**gates: Any) -> Plan:
        asked = {"teacher": str(teacher), "student": str(student), "labeled_budget": 400, "gates": gates}
        return make_plan(read_request(asked), None, CPU, policy(root))

    return make


def scores(rewards: list[list[float]]) -> Scores:
    ids = [f"{i:032x}" for i in range(len(rewards))]
    return Scores(ids=ids, rewards=rewards, completion_tokens=1, truncated=0.0, seconds=1.0)


def c1(plan: Plan, gains: list[float]) -> GateResult:
    """Judged on a teacher that was right half of the time, and has gained so much on each problem."""
    return judge_c1(plan, scores([[0.5]] * len(gains)), scores([[0.5 + gain] for gain in gains]))


def c2(plan: Plan, *, kl: float, agreement: float) -> GateResult:
    measured = KlMeasurement(
        reverse_kl=kl,
        forward_kl=9.0,
        student_entropy=1.0,
        top_token_agreement=agreement,
        rollouts=8,
        tokens=80,
        mean_completion_tokens=10.0,
        truncated=0.0,
    )
    return judge_c2(plan, measured, 30, BEFORE)


def test_c1_holds_where_every_problem_gains(plan_with: MakePlan) -> None:
    result = c1(plan_with(), [0.25] * 8)
    assert result.passed
    assert result.measured["gain"] == result.measured["gain_low"] == 0.25
    assert "C1 holds" in result.message


def test_c1_does_not_hold_where_only_the_mean_is_over_the_bound(plan_with: MakePlan) -> None:
    """Four problems of ten gain as much as three lose: chance does that."""
    result = c1(plan_with(), [0.5] * 4 + [-0.5] * 3 + [0.0] * 3)
    assert result.measured["gain"] == pytest.approx(0.05)
    assert result.measured["gain_low"] < 0.0 < result.measured["gain_high"]
    assert not result.passed
    assert "C1 does not hold" in result.message


@pytest.mark.parametrize("gains", [[0.0] * 8, [0.5, -0.5] * 4], ids=["no change", "as many up as down"])
def test_c1_does_not_hold_on_a_tie(plan_with: MakePlan, gains: list[float]) -> None:
    result = c1(plan_with(), gains)
    assert result.measured["gain"] == 0.0
    assert not result.passed


def test_c1_does_not_hold_where_the_teacher_got_worse(plan_with: MakePlan) -> None:
    assert not c1(plan_with(), [-0.25] * 8).passed


@pytest.mark.parametrize(("min_gain", "holds"), [(0.0, True), (0.125, True), (0.25, False), (0.5, False)])
def test_c1_must_exceed_its_bound(plan_with: MakePlan, min_gain: float, holds: bool) -> None:
    """Every problem gains a quarter, so that the lower end is a quarter too."""
    assert c1(plan_with(c1={"min_gain": min_gain}), [0.25] * 8).passed is holds


def test_c1_asks_for_the_confidence_of_the_plan(plan_with: MakePlan) -> None:
    """Five of eight up and three down: more likely than not a gain, and not for sure."""
    gains = [0.5] * 5 + [-0.5] * 3
    assert c1(plan_with(c1={"confidence": 0.55}), gains).passed
    assert not c1(plan_with(c1={"confidence": 0.95}), gains).passed


def test_c1_pairs_the_problems(plan_with: MakePlan) -> None:
    """Each problem gains a little, problems differ by much: only paired is the gain beyond chance."""
    before = [[0.0], [0.25], [0.5], [0.75]] * 2
    result = judge_c1(plan_with(), scores(before), scores([[one + 0.125] for (one,) in before]))
    assert result.passed
    assert result.measured["gain_low"] == 0.125


@pytest.mark.parametrize(
    ("kl", "agreement", "holds"),
    [
        (0.1, 0.9, True),
        (0.1, 0.5, False),
        (0.9, 0.9, False),
        (0.9, 0.5, False),
        (0.5, 0.75, True),
        (0.5001, 0.75, False),
        (0.5, 0.7499, False),
    ],
    ids=["both", "no agreement", "no KL", "neither", "at both bounds", "KL just over", "agreement just under"],
)
def test_c2_needs_kl_and_agreement(plan_with: MakePlan, kl: float, agreement: float, holds: bool) -> None:
    result = c2(plan_with(c2={"max_kl": 0.5, "min_agreement": 0.75}), kl=kl, agreement=agreement)
    assert result.passed is holds
    assert ("C2 holds" in result.message) is holds
    assert (result.measured["step"], result.measured["max_kl"], result.measured["min_agreement"]) == (30, 0.5, 0.75)


def test_c2_is_judged_by_the_reverse_kl_alone_of_both_directions(plan_with: MakePlan) -> None:
    """The forward KL of these measurements is far over any bound."""
    assert c2(plan_with(), kl=0.1, agreement=1.0).passed


def test_what_was_before_the_warmup_decides_nothing(plan_with: MakePlan) -> None:
    plan = plan_with()
    near, far = ({"reverse_kl": kl, "top_token_agreement": 1.0} for kl in (0.0, 9.0))
    measured = KlMeasurement(0.1, 0.1, 1.0, 1.0, 8, 80, 10.0, 0.0)
    assert judge_c2(plan, measured, 4, near).passed
    assert judge_c2(plan, measured, 4, far).passed


def told(step: int, passed: bool) -> GateResult:
    return GateResult(gate="c2", passed=passed, measured={"step": step}, message="")


@pytest.mark.parametrize("holds_at", [4, 6, None])
def test_the_warmup_is_checked_from_steps_on_and_ends_where_c2_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, holds_at: int | None
) -> None:
    """Steps 4, then every second, and the cap of 9 whatever the rhythm."""
    stage = SimpleNamespace(steps=4, max_steps=9, check_every=2)
    until_c2 = UntilC2(SimpleNamespace(stage=stage), SimpleNamespace(), [])  # type: ignore[arg-type]
    asked: list[int] = []

    def measure(step: int) -> GateResult:
        asked.append(step)
        return told(step, passed=step == holds_at)

    monkeypatch.setattr(until_c2, "measure", measure)
    args, control = TrainingArguments(output_dir=str(tmp_path), use_cpu=True), TrainerControl()
    for step in range(1, stage.max_steps + 1):
        until_c2.on_step_end(args, TrainerState(global_step=step), control)
        if control.should_training_stop:
            break
    due = [4, 6, 8, 9]
    assert asked == (due if holds_at is None else due[: due.index(holds_at) + 1])
    assert control.should_training_stop is (holds_at is not None)


def test_a_stop_that_was_asked_for_outlives_a_failed_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = SimpleNamespace(steps=1, max_steps=9, check_every=1)
    until_c2 = UntilC2(SimpleNamespace(stage=stage), SimpleNamespace(), [])  # type: ignore[arg-type]
    monkeypatch.setattr(until_c2, "measure", lambda step: told(step, passed=False))
    control = TrainerControl(should_training_stop=True)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    until_c2.on_step_end(args, TrainerState(global_step=1), control)
    assert control.should_training_stop
