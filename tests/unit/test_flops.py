"""FLOPs of every kind of stage, by hand from the formulas of docs/plan.md.

The teacher has 1,000 parameters, the student 10, and a stage handles 7 tokens. A token takes 2N to generate or to
score, 6N to train; 8N with checkpointing, 4N with LoRA, 6N with both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from plan_pair import CPU, policy, write_pair

from s2d.plan.document import Lora, Plan
from s2d.plan.flops import Compute
from s2d.plan.names import Control
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageResult, StageTask, this_process
from s2d.stages.__main__ import main
from s2d.stages.runtime import StageRuntime

TEACHER, STUDENT, TOKENS = 1_000, 10, 7


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Every kind of stage, all weights trained and nothing computed twice; sizes that can be reckoned with."""
    root = tmp_path_factory.mktemp("pair")
    teacher, student = write_pair(root)
    rates = {"direct_grpo": {"learning_rates": [1e-4, 1e-3]}}
    asked = {"teacher": str(teacher), "student": str(student), "labeled_budget": 1000, "unlabeled_prompts": 2000}
    every = {"controls": get_args(Control), "compute_matched": True, "stages": rates}
    made = make_plan(read_request({**asked, **every}), None, CPU, policy(root))
    sizes = {"teacher": TEACHER, "student": STUDENT}
    models = {role: getattr(made, role).model_copy(update={"parameters": size}) for role, size in sizes.items()}
    whole = {"gradient_checkpointing": False, "lora": None}
    stages = tuple(
        one.model_copy(update={name: value for name, value in whole.items() if hasattr(one, name)})
        for one in made.stages
    )
    return made.model_copy(update={**models, "stages": stages}).sealed()


def flops(plan: Plan, name: str, tokens: float = TOKENS, scored: float | None = None, **changes: Any) -> float:
    stage = plan.stage(name).model_copy(update=changes)
    return Compute(plan.stages, plan.teacher, plan.student).flops(stage, tokens, scored)


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        # Generate 2N.
        ("teacher_rollouts", 14_000),  # 2 x 1,000 x 7
        ("raw_rollouts", 14_000),  # the teacher before stage 1 is as large
        ("direct_grpo_select", 140),  # 2 x 10 x 7, candidates on the validation labels
        # GRPO: generate 2N, train 6N.
        ("teacher_rl", 56_000),  # (2 + 6) x 1,000 x 7
        ("student_rl", 560),  # (2 + 6) x 10 x 7
        ("direct_grpo_1", 560),
        ("direct_grpo_compute", 560),
        ("cold_student_rl", 560),
        ("replay_labels", 560),
        # Warmup on stored rollouts: train 6 N_s, score 2 N_t.
        ("warmup", 14_420),  # 420 + 14,000
        ("raw_warmup", 14_420),
        ("warmup_only", 14_420),
        # OPD: generate 2 N_s, train 6 N_s, score 2 N_t.
        ("opd", 14_560),  # 140 + 420 + 14,000
        ("raw_opd", 14_560),
        ("opd_only", 14_560),
        ("replay", 14_560),
        ("raw_teacher_bridge_compute", 14_560),
        # The test of the models is behind none of them.
        ("evaluate", 0),
    ],
)
def test_every_kind_of_stage(plan: Plan, stage: str, wanted: float) -> None:
    assert flops(plan, stage) == wanted


@pytest.mark.parametrize(
    ("stage", "checkpointing", "lora", "wanted"),
    [
        ("teacher_rl", True, False, 70_000),  # (2 + 8) x 1,000 x 7
        ("teacher_rl", False, True, 42_000),  # (2 + 4) x 1,000 x 7
        ("teacher_rl", True, True, 56_000),  # (2 + 6) x 1,000 x 7
        ("student_rl", True, False, 700),  # (2 + 8) x 10 x 7
        ("student_rl", False, True, 420),  # (2 + 4) x 10 x 7
        ("warmup", True, False, 14_560),  # 8 x 10 x 7, and the teacher's 14,000 as ever
        ("warmup", False, True, 14_280),  # 4 x 10 x 7
        ("warmup", True, True, 14_420),  # 6 x 10 x 7
        ("opd", True, False, 14_700),  # (2 + 8) x 10 x 7
        ("opd", False, True, 14_420),  # (2 + 4) x 10 x 7
    ],
)
def test_checkpointing_computes_activations_again_and_lora_leaves_gradients_out(
    plan: Plan, stage: str, checkpointing: bool, lora: bool, wanted: float
) -> None:
    assert flops(plan, stage, gradient_checkpointing=checkpointing, lora=Lora() if lora else None) == wanted


@pytest.mark.parametrize(
    ("stage", "wanted"),
    [
        ("teacher_rl", 70_000),  # 56,000 and 2 x 1,000 x 7
        ("student_rl", 700),  # 560 and 2 x 10 x 7
        ("direct_grpo_1", 700),
    ],
)
def test_a_reference_model_scores_every_token(plan: Plan, stage: str, wanted: float) -> None:
    assert flops(plan, stage, beta=0.04) == wanted


def test_a_teacher_that_reads_once_is_counted_once(plan: Plan) -> None:
    """The student trains on ten passes over 7 tokens, the teacher has read them in the first."""
    assert flops(plan, "warmup", tokens=70, scored=7) == 18_200  # 6 x 10 x 70 and 2 x 1,000 x 7
    assert flops(plan, "warmup", tokens=70) == 144_200  # 6 x 10 x 70 and 2 x 1,000 x 70


def test_no_token_takes_nothing(plan: Plan) -> None:
    """A control that had its compute already makes no step."""
    assert all(flops(plan, name, tokens=0) == 0 for name in plan.ids())


@pytest.mark.parametrize(
    ("stage", "counted", "wanted"),
    [
        # Rollouts: completions, and the prompts beside them.
        ("teacher_rollouts", {"tokens": 5, "prompt_tokens": 2}, 14_000),  # 2 x 1,000 x 7
        # Training: prompts among the tokens.
        ("warmup", {"tokens": 7}, 14_420),
        ("warmup", {"tokens": 70, "data": {"teacher_tokens": 7}}, 18_200),
    ],
)
def test_a_stage_counts_the_tokens_that_it_handled(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, counted: dict[str, Any], wanted: float
) -> None:
    monkeypatch.setattr(StageRuntime, "watch", lambda _: None)
    layout = JobLayout(tmp_path)
    layout.stage(stage).mkdir(parents=True)
    layout.plan.write_text(plan.model_dump_json())
    file = layout.stage(stage) / "task.json"
    task = StageTask(job_dir=tmp_path, stage=stage, attempt=1, models={}, supervisor=this_process())
    file.write_text(task.model_dump_json())
    made = StageResult(stage=stage, kind=plan.stage(stage).kind, **counted)
    assert main([str(file)], lambda _: lambda _: made) == 0
    assert StageResult.model_validate_json(layout.result(stage).read_text()).flops == wanted
