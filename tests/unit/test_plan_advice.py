"""What the planner recommends, and what it rests on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_pair import CPU, policy, write_pair
from pydantic import ValidationError

from s2d.evaluate.scores import Scores
from s2d.plan import advice
from s2d.plan.document import Plan
from s2d.plan.evidence import Evidence, PassRates
from s2d.plan.request import PlanRequest
from s2d.plan.service import make_plan
from s2d.probe.passrates import histogram

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def rates(*solved: int, tokens: float = 100.0) -> PassRates:
    return PassRates(k=len(solved) - 1, solved=solved, mean_completion_tokens=tokens)


SOME, FEW = rates(10, 20, 20, 20, 10), rates(40, 25, 10, 5, 0)
NEVER, ALWAYS = rates(80, 0, 0, 0, 0), rates(0, 0, 0, 2, 78)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write_pair(tmp_path)
    return tmp_path


def plan(pair: Path, labeled: int = 1200, teacher: PassRates | None = None, **fields: Any) -> Plan:
    models = {"teacher": str(pair / "teacher"), "student": str(pair / "student")}
    rated, student = fields.pop("rated", tuple(models.values())), fields.pop("student", FEW)
    evidence = None if teacher is None else Evidence(pair=rated, teacher=teacher, student=student)
    request = PlanRequest(**models, labeled_budget=labeled, evidence=evidence, **fields)
    return make_plan(request, None, CPU, policy(pair))


def codes(made: Plan) -> set[str]:
    return {one.code for one in made.advice}


def test_without_a_probe_paper_and_bench_are_named(pair: Path) -> None:
    made = plan(pair)
    assert codes(made) == {"through_the_teacher", "stage_3", "more_labels"}
    for one in made.advice:
        assert one.evidence
        assert all("paper" in line or "our bench" in line for line in one.evidence)


def test_a_stronger_teacher_that_can_learn_gets_the_labels(pair: Path) -> None:
    made = plan(pair, teacher=SOME)
    assert codes(made) == {"through_the_teacher", "labels_with_signal", "stage_3", "more_labels"}
    assert "the probe of your pair" in made.advice[0].evidence[0]
    assert made.evidence is not None


def test_a_teacher_behind_its_student_is_no_teacher(pair: Path) -> None:
    assert "direct_grpo" in codes(plan(pair, teacher=FEW, student=SOME))


def test_labels_that_teach_only_the_student_go_to_the_student(pair: Path) -> None:
    found = codes(plan(pair, teacher=ALWAYS, student=SOME))
    assert {"direct_grpo", "labels_too_easy"} <= found


def test_labels_at_either_end_are_named(pair: Path) -> None:
    assert "labels_too_hard" in codes(plan(pair, teacher=NEVER, student=NEVER))
    assert "labels_too_easy" in codes(plan(pair, teacher=ALWAYS, student=ALWAYS))


def test_stage_3_is_left_out_where_it_could_learn_nothing_unless_it_is_asked_for(pair: Path) -> None:
    assert plan(pair).data.labels.student_rl > 0
    left_out = plan(pair, teacher=ALWAYS)
    assert left_out.data.labels.student_rl == 0
    assert "no_stage_3" in codes(left_out)
    # No label is lost by it.
    assert left_out.data.labels.total == 1200
    assert plan(pair, teacher=ALWAYS, student_rl=True).data.labels.student_rl > 0
    assert plan(pair, teacher=ALWAYS, labels={"student_rl": 100}).data.labels.student_rl == 100


def test_pass_rates_of_another_pair_are_left_out_with_a_warning(pair: Path) -> None:
    made = plan(pair, teacher=ALWAYS, rated=("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"))
    assert made.evidence is None
    assert made.data.labels.student_rl > 0
    assert "evidence_of_others" in {one.code for one in made.warnings}


def test_two_models_that_solve_the_same_are_not_one_behind_the_other(pair: Path) -> None:
    for same in (ALWAYS, NEVER, rates(0, 0, 64)):
        assert "direct_grpo" not in codes(plan(pair, teacher=same, student=same))
    # And eight problems are not enough to say so.
    assert "direct_grpo" not in codes(plan(pair, teacher=rates(8, *[0] * 8), student=rates(0, 8, *[0] * 7)))


def test_what_further_labels_would_change_adds_up(pair: Path) -> None:
    now, later = plan(pair), plan(pair, 1700)
    said = next(one.message for one in now.advice if one.code == "more_labels")
    for name in ("teacher_rl", "student_rl", "validation", "test"):
        assert f"{getattr(later.data.labels, name) - getattr(now.data.labels, name)} " in said
    assert "more_labels" not in codes(plan(pair, labels={"teacher_rl": 500}))
    # The same decisions stand behind both.
    left_out = next(one.message for one in plan(pair, teacher=ALWAYS).advice if one.code == "more_labels")
    assert "-" not in left_out
    assert "held out" not in left_out


def test_the_figures_are_those_of_the_bench() -> None:
    table = json.loads((RESULTS / "paper-table.json").read_text())
    found = {claim["name"]: claim["difference"] for claim in table["claims"]}

    def points(one: dict[str, float]) -> tuple[float, ...]:
        return tuple(round(100 * one[name], 1) for name in ("mean", "low", "high"))

    assert points(found["f"]) == (advice.WORKFLOW_GAIN, advice.WORKFLOW_LOW, advice.WORKFLOW_HIGH)
    assert points(found["d0"]) == (advice.STAGE_3_GAIN, advice.STAGE_3_LOW, advice.STAGE_3_HIGH)
    sweep = json.loads((RESULTS / "allocation.json").read_text())["accuracy"]
    assert min(min(values) for share, values in sweep.items() if int(share)) * 100 > advice.SWEEP_LOW
    base = [table["arms"][f"base_{role}"]["accuracy"]["mean"] for role in ("teacher", "student")]
    assert round(100 * (base[0] - base[1]), 1) == advice.BENCH_LEAD


# --- pass rates -----------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=3, max_size=9).filter(any), st.integers(2, 32))
def test_shares_are_shares(solved: list[int], group: int) -> None:
    one = rates(*solved)
    assert 0 <= one.avg <= 1
    assert 0 <= one.mixed(group) <= 1
    assert one.never + one.always <= 1 + 1e-9
    # A larger group is mixed more often.
    assert one.mixed(group + 1) >= one.mixed(group) - 1e-9


def test_what_is_never_or_always_solved_has_hardly_a_mixed_group() -> None:
    assert NEVER.mixed(8) < 0.05
    assert ALWAYS.mixed(8) < 0.15
    assert SOME.mixed(8) > 0.6
    # A coin: 1 - 2 / 2^8.
    coin = rates(*([0] * 512 + [100] + [0] * 512))
    assert coin.mixed(8) == pytest.approx(1 - 2 / 2**8, abs=0.01)


def test_few_problems_are_unsure() -> None:
    assert rates(1, 1, 1).half_width > rates(50, 50, 50).half_width
    assert rates(0, 1, 0).half_width > 0.4
    assert 0 < rates(0, 0, 64).half_width < 0.05


def test_many_problems_take_no_longer_than_few() -> None:
    many = rates(10**6, 10**6, 10**6)
    assert many.avg == 0.5
    assert many.half_width < 0.001


@pytest.mark.parametrize("solved", [(1, 2), (0, 0, 0, 0, 0), (-1, 1, 1, 1, 1), (10**15, 0, 0, 0, 0)])
def test_a_count_that_is_none_is_refused(solved: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        PassRates(k=4, solved=solved, mean_completion_tokens=1)


def test_rewards_become_counts() -> None:
    rewards = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.4, 0.6, 0.0]]
    scores = Scores(ids=list("abcd"), rewards=rewards, completion_tokens=120, truncated=0, seconds=1)
    assert histogram(scores, 3) == rates(1, 1, 1, 1, tokens=10)
