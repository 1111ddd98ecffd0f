"""Control arms: each differs from the workflow in one thing, and every plan hangs together."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_pair import CPU, policy, write_pair
from pydantic import ValidationError

from s2d.errors import InvalidPlan
from s2d.plan.controls import NEED_STAGE_3
from s2d.plan.document import Evaluate, Plan, Training, load_plan
from s2d.plan.flops import Compute
from s2d.plan.graph import WORKFLOW, labels_read
from s2d.plan.names import Control
from s2d.plan.overrides import COMPUTE_MATCHED
from s2d.plan.request import PlanRequest, read_request
from s2d.plan.service import make_plan

CONTROLS: tuple[Control, ...] = get_args(Control)
SAME = (
    "optim",
    "sampling",
    "per_device_batch_size",
    "gradient_accumulation",
    "lora",
    "dtype",
    "gradient_checkpointing",
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root)
    return root


def plan_with(pair: Path, **fields: Any) -> Plan:
    names = {"teacher": str(pair / "teacher"), "student": str(pair / "student")}
    wishes = {"labeled_budget": 1000, "unlabeled_prompts": 2000, **names, **fields}
    return make_plan(read_request(wishes), None, CPU, policy(pair))


@pytest.fixture(scope="module")
def everything(pair: Path) -> Plan:
    rates = {"direct_grpo": {"learning_rates": [1e-4, 3e-4, 1e-3]}}
    return plan_with(pair, controls=CONTROLS, compute_matched=True, stages=rates)


def test_every_control_is_evaluated_and_no_candidate_is(everything: Plan) -> None:
    evaluated = everything.stage("evaluate").models
    assert set(CONTROLS) <= set(evaluated)
    assert {f"{name}_compute" for name in COMPUTE_MATCHED} <= set(evaluated)
    assert not [name for name in evaluated if name.startswith("direct_grpo_") and name[-1].isdigit()]
    assert "raw_warmup_student" not in evaluated


@pytest.mark.parametrize(
    ("control", "mirrors", "differs"),
    [
        ("opd_only", "opd", {"starts_from": "base_student"}),
        ("warmup_only", "warmup", {"starts_from": "warmup_student"}),
        ("cold_student_rl", "student_rl", {"starts_from": "base_student", "label_roles": ("student_rl",)}),
        ("replay_labels", "student_rl", {"starts_from": "opd_student", "label_roles": ("teacher_rl",)}),
        ("replay", "opd", {"starts_from": "opd_student"}),
        ("raw_opd", "opd", {"teacher": "base_teacher", "starts_from": "raw_warmup_student"}),
        (
            "raw_warmup",
            "warmup",
            {"teacher": "base_teacher", "rollouts": "raw_rollouts", "starts_from": "base_student"},
        ),
        ("labeled_opd", "opd", {"pool": "teacher_rl", "teacher": "rl_teacher"}),
    ],
)
def test_a_control_has_the_settings_of_the_stage_that_it_stands_in_for(
    everything: Plan, control: str, mirrors: str, differs: dict[str, Any]
) -> None:
    one, other = everything.stage(control), everything.stage(mirrors)
    for name in SAME:
        assert getattr(one, name) == getattr(other, name), name
    for name, value in differs.items():
        assert getattr(one, name) == value


def test_updates_are_matched(everything: Plan) -> None:
    steps = {stage.id: stage.steps for stage in everything.stages if isinstance(stage, Training)}
    assert steps["opd_only"] == steps["warmup"] + steps["opd"]
    assert everything.stage("opd_only").matches == ("warmup", "opd")
    assert everything.stage("raw_warmup").matches == ("warmup",)
    assert steps["warmup_only"] == steps["opd"] == steps["raw_opd"]
    assert steps["cold_student_rl"] == steps["replay"] == steps["replay_labels"] == steps["student_rl"]
    assert steps["direct_grpo_1"] == steps["teacher_rl"] + steps["student_rl"]
    for name in ("replay", "replay_labels"):
        assert everything.lineage(name)[-2:] == ("opd", name)


def test_the_same_prompts_in_the_same_order(everything: Plan) -> None:
    for one, other in (("cold_student_rl", "student_rl"), ("raw_opd", "opd"), ("raw_warmup", "warmup")):
        assert everything.stage(one).seed == everything.stage(other).seed
    labeled, rollouts = everything.stage("labeled_rollouts"), everything.stage("teacher_rollouts")
    assert labeled.prompts == everything.data.labels.teacher_rl
    drawn = labeled.prompts * labeled.samples_per_prompt
    assert drawn <= rollouts.prompts * rollouts.samples_per_prompt < drawn + labeled.prompts


def test_lineage_names_all_that_is_behind_a_model(everything: Plan) -> None:
    assert everything.lineage("rl_student") == ("teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl")
    assert everything.lineage("raw_teacher_bridge") == ("raw_rollouts", "raw_warmup", "raw_opd")
    assert everything.lineage("base_student") == ()
    assert everything.lineage("direct_grpo")[-1] == "direct_grpo_select"


def test_no_arm_reads_a_label_twice_and_only_judges_read_validation(everything: Plan) -> None:
    seen = set()
    for stage in everything.stages:
        for role in labels_read(stage):
            assert (stage.arm, role) not in seen
            seen.add((stage.arm, role))
            if role in ("validation", "test"):
                assert not isinstance(stage, Training)
            if role == "test":
                assert isinstance(stage, Evaluate)


def test_compute_matched_controls_aim_at_what_they_are_compared_with(everything: Plan) -> None:
    compute = Compute(everything.stages, everything.teacher, everything.student)

    # The same length for every sequence of every stage: it cancels.
    longest = 1.0

    def tokens(stage: Any) -> float:
        if stage.kind == "teacher_rollouts":
            return float(stage.prompts * stage.samples_per_prompt * longest)
        rows = getattr(stage, "sequences_per_step", 0) or stage.prompts_per_step * stage.group_size
        return float(stage.steps * rows * longest)

    def behind(model: str) -> float:
        return sum(compute.flops(one, tokens(one)) for one in map(everything.stage, everything.lineage(model)))

    for control, model, reference in (
        ("direct_grpo_compute", "direct_grpo_1", "rl_student"),
        ("raw_teacher_bridge_compute", "raw_teacher_bridge", "opd_student"),
        ("opd_only_compute", "opd_only", "opd_student"),
        ("warmup_only_compute", "warmup_only", "opd_student"),
    ):
        more = everything.stage(control)
        step = compute.flops(more, tokens(more)) / more.steps
        assert behind(model) + compute.flops(more, tokens(more)) == pytest.approx(behind(reference), abs=0.51 * step)


@given(st.lists(st.sampled_from(CONTROLS), unique=True), st.booleans(), st.integers(200, 3000))
@settings(max_examples=40, deadline=None)
def test_any_choice_of_controls_makes_a_sound_plan(
    pair: Path, controls: list[Control], matched: bool, labels: int
) -> None:
    wanted = matched and bool(set(controls) & set(COMPUTE_MATCHED))
    plan = plan_with(pair, controls=controls, compute_matched=wanted, labeled_budget=labels)
    assert load_plan(plan.model_dump_json()) == plan
    assert {stage.arm for stage in plan.stages} >= {WORKFLOW, *controls}
    assert all(stage.estimate.seconds.high > 0 for stage in plan.stages)


@pytest.mark.parametrize("control", NEED_STAGE_3)
def test_a_control_of_stage_3_needs_stage_3(pair: Path, control: Control) -> None:
    with pytest.raises(InvalidPlan, match=f"{control} belongs to stage 3"):
        plan_with(pair, controls=[control], student_rl=False)


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"controls": ["opd_only", "opd_only"]}, "twice"),
        ({"controls": ["replay"], "compute_matched": True}, "compute_matched needs"),
        ({"controls": ["direct_grpo"], "stages": {"direct_grpo": {"learning_rates": [1e-4]}}}, "at least 2"),
        ({"controls": ["direct_grpo"], "stages": {"direct_grpo": {"learning_rates": [1e-4, 1e-4]}}}, "different"),
        (
            {
                "controls": ["direct_grpo"],
                "stages": {"direct_grpo": {"learning_rates": [1e-4, 1e-3], "learning_rate": 1e-3}},
            },
            "not both",
        ),
    ],
)
def test_wishes_without_sense_are_refused(wishes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        PlanRequest.model_validate({"teacher": "a", "student": "b", "labeled_budget": 1000, **wishes})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: (*s[:-1], s[0].model_copy(update={"id": "again", "trains": "other"}), s[-1]), "a second time"),
        (lambda s: (s[0], s[0], *s[1:]), "two stages are named teacher_rl"),
        (lambda s: (*s[1:],), "needs rl_teacher from an earlier stage"),
        (lambda s: (s[0], s[1], s[3], s[2], *s[4:]), "needs warmup_student"),
    ],
)
def test_a_plan_that_does_not_hang_together_is_no_plan(pair: Path, change: Any, told: str) -> None:
    plan = plan_with(pair)
    document = plan.model_copy(update={"stages": change(plan.stages)}).sealed()
    with pytest.raises(InvalidPlan, match=told):
        load_plan(document.model_dump_json())


def test_dr_grpo_leaves_the_standard_deviation_out(pair: Path) -> None:
    plan = plan_with(pair, stages={"teacher_rl": {"loss_type": "dr_grpo"}})
    assert plan.stage("teacher_rl").scale_rewards == "none"
    asked = {"loss_type": "dr_grpo", "scale_rewards": "batch"}
    assert plan_with(pair, stages={"teacher_rl": asked}).stage("teacher_rl").scale_rewards == "batch"


def test_training_on_held_out_rows_cannot_be_written_down(pair: Path) -> None:
    plan = plan_with(pair)
    document = plan.model_dump_json().replace('"label_roles":["teacher_rl"]', '"label_roles":["test"]')
    with pytest.raises(InvalidPlan, match="label_roles"):
        load_plan(document)
