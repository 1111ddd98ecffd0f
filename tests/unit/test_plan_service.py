"""Whole plans: what holds for every plan, what a request decides, and what is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_pair import CPU, policy, write_pair
from rich.console import Console

from s2d.errors import InvalidPlan, InvalidRequest
from s2d.plan.allocation import MIN_LABELS
from s2d.plan.document import Grpo, Plan, Training, load_plan
from s2d.plan.models import ModelPolicy
from s2d.plan.render import to_markdown, to_rich
from s2d.plan.request import DataSummary, read_request
from s2d.plan.service import check_against_data, make_plan

H100 = {"device": "cuda", "devices": 1, "memory_gib": 80, "name": "H100"}
REAL = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "hardware": H100}


def real_plan(**fields: Any) -> Plan:
    return make_plan(read_request({**REAL, **fields}), None, CPU, ModelPolicy(allow_hub=False))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root)
    return root


def tiny_plan(pair: Path, data: DataSummary | None = None, **fields: Any) -> Plan:
    request = read_request({"teacher": str(pair / "teacher"), "student": str(pair / "student")} | fields)
    return make_plan(request, data, CPU, policy(pair))


requests = st.fixed_dictionaries(
    {
        "labeled_budget": st.integers(MIN_LABELS, 20_000),
        "unlabeled_prompts": st.integers(0, 20_000),
        "hardware": st.fixed_dictionaries(
            {"device": st.just("cuda"), "devices": st.integers(1, 8), "memory_gib": st.sampled_from([80, 141])}
        ),
    },
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "controls": st.just(["direct_grpo"]),
        "student_rl": st.booleans(),
        "lora": st.sampled_from([True, {"rank": 8}]),
        "max_completion_tokens": st.integers(1, 4096),
        "stages": st.fixed_dictionaries({"teacher_rl": st.fixed_dictionaries({"group_size": st.integers(2, 16)})}),
    },
)


@given(requests)
@settings(max_examples=60, deadline=None)
def test_what_holds_for_every_plan(fields: dict[str, Any]) -> None:
    try:
        plan = real_plan(**fields)
    except InvalidPlan:
        return
    assert load_plan(plan.model_dump_json()) == plan
    assert real_plan(**fields).id == plan.id
    for stage in plan.stages:
        assert stage.estimate.memory_gib.high <= plan.hardware.memory_gib
        assert 0 < stage.estimate.seconds.low < stage.estimate.seconds.high
        if isinstance(stage, Training):
            in_step = stage.per_device_batch_size * stage.gradient_accumulation * plan.hardware.devices
            asked = stage.prompts_per_step * stage.group_size if isinstance(stage, Grpo) else stage.sequences_per_step
            assert in_step == asked
    seeds = [stage.seed for stage in plan.stages] + [plan.data.split_seed]
    assert len(set(seeds)) == len(seeds)
    assert plan.data.bridge_prompts <= plan.data.labels.teacher_rl + plan.data.unlabeled
    assert plan.stage("teacher_rollouts").prompts <= plan.data.bridge_prompts


def test_a_large_teacher_on_one_gpu_gets_adapters_and_the_reason() -> None:
    plan = real_plan(labeled_budget=2000, unlabeled_prompts=8000, controls=["direct_grpo"])
    assert list(plan.ids()) == [
        "teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "direct_grpo", "evaluate",
    ]  # fmt: skip
    teacher, student = plan.stage("teacher_rl"), plan.stage("student_rl")
    assert teacher.lora is not None
    assert "LoRA" in teacher.why
    assert "122" in teacher.why  # 16 bytes x 8.19e9 parameters, GiB
    assert student.lora is None
    assert "lora_chosen" in {warning.code for warning in plan.warnings}
    direct = plan.stage("direct_grpo")
    assert direct.steps == teacher.steps + student.steps
    assert direct.label_roles == ("teacher_rl", "student_rl")
    assert "rl_student" in plan.stage("evaluate").models
    assert teacher.dtype == "bfloat16"


def test_models_follow_the_stages_that_are_planned(pair: Path) -> None:
    plan = tiny_plan(pair, labeled_budget=1000, student_rl=False)
    assert "student_rl" not in list(plan.ids())
    assert plan.stage("evaluate").models == (
        "base_teacher", "rl_teacher", "base_student", "warmup_student", "opd_student",
    )  # fmt: skip
    assert plan.stage("opd").dtype == "float32"
    assert {stage.lora for stage in plan.stages if isinstance(stage, Training)} == {None}


def test_settings_of_the_request_are_used_as_they_stand(pair: Path) -> None:
    stages = {
        "teacher_rl": {"steps": 30, "prompts_per_step": 32, "learning_rate": 3e-4, "per_device_batch_size": 64,
                       "beta2": 0.99, "schedule": "cosine", "warmup_steps": 3, "save_every": 10, "temperature": 0.9},
        "teacher_rollouts": {"prompts": 800, "samples_per_prompt": 2, "batch_size": 128},
        "warmup": {"steps": 60, "max_steps": 120, "check_every": 20, "sequences_per_step": 256},
        "opd": {"sequences_per_step": 256, "steps": 90, "weight_decay": 0.0},
        "evaluate": {"k": 2, "temperature": 1.0, "top_p": 1.0, "top_k": 0, "batch_size": 500},
    }  # fmt: skip
    plan = tiny_plan(
        pair, labeled_budget=2000, unlabeled_prompts=8192, stages=stages, bridge_prompts=8000,
        labels={"teacher_rl": 512, "student_rl": 512, "validation": 200}, max_prompt_tokens=16,
        max_completion_tokens=24, gates={"c2": {"max_kl": 0.2}}, on_gate_failure="continue",
    )  # fmt: skip
    given = plan.model_dump()
    teacher = plan.stage("teacher_rl").model_dump()
    optim = {"beta2", "learning_rate", "schedule", "warmup_steps"}
    for name, value in stages["teacher_rl"].items():
        place = teacher["optim"] if name in optim else teacher["sampling"] if name == "temperature" else teacher
        assert place[name] == value
    assert teacher["gradient_accumulation"] == 4
    assert plan.stage("teacher_rollouts").batch_size == 128
    assert (plan.stage("warmup").max_steps, plan.stage("warmup").sequences_per_step) == (120, 256)
    assert plan.stage("opd").optim.weight_decay == 0
    assert plan.stage("evaluate").sampling.top_k == 0
    assert given["data"]["labels"] == {"teacher_rl": 512, "student_rl": 512, "validation": 200, "test": 776}
    assert (plan.gates.c2.max_kl, plan.gates.c2.prompts, plan.gates.on_failure) == (0.2, 128, "continue")
    assert (plan.max_prompt_tokens, plan.max_completion_tokens) == (16, 24)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "labeled_budget"),
        ({"labeled_budget": 0}, "labeled_budget"),
        ({"labeled_budget": -3}, "labeled_budget"),
        ({"labeled_budget": 3}, "labeled_budget"),
        ({"labeled_budget": 500, "labelled": 3}, "labelled"),
        ({"labeled_budget": 500, "stages": {"opd": {"prompts_per_step": 4}}}, "stages.opd.prompts_per_step"),
        ({"labeled_budget": 500, "stages": {"teacher_rl": {"prompts_per_step": 9999}}}, "prompts_per_step"),
        ({"labeled_budget": 500, "stages": {"warmup": {"sequences_per_step": 10**6}}}, "sequences_per_step"),
        ({"labeled_budget": 500, "stages": {"warmup": {"steps": 9, "max_steps": 3}}}, "max_steps"),
        ({"labeled_budget": 500, "stages": {"opd": {"steps": 5, "warmup_steps": 6}}}, "warmup_steps"),
        ({"labeled_budget": 500, "stages": {"teacher_rl": {"per_device_batch_size": 7}}}, "per_device_batch_size"),
        ({"labeled_budget": 500, "stages": {"direct_grpo": {"steps": 5}}}, "controls"),
        ({"labeled_budget": 500, "student_rl": False, "stages": {"student_rl": {"steps": 5}}}, "stages.student_rl"),
        ({"labeled_budget": 500, "student_rl": False, "labels": {"student_rl": 5}}, "labels.student_rl"),
        ({"labeled_budget": 500, "bridge_prompts": 5000}, "bridge_prompts"),
        ({"labeled_budget": 500, "stages": {"teacher_rollouts": {"prompts": 5000}}}, "stages.teacher_rollouts.prompts"),
        ({"labeled_budget": 500, "gates": {"c2": {"prompts": 5000}}}, "gates.c2.prompts"),
        ({"labeled_budget": 500, "max_completion_tokens": 2000}, "max_completion_tokens"),
        ({"labeled_budget": 500, "verifier": "telepathy"}, "verifier"),
        ({"labeled_budget": 500, "hardware": {"device": "cpu", "devices": 2}}, "devices"),
        ({"labeled_budget": 500, "hardware": {"memory_gib": float("inf")}}, "hardware.memory_gib"),
        ({"labeled_budget": 500, "teacher": "a--b/c"}, "teacher"),
        ({"labeled_budget": 500, "hardware": {"memory_gib": 0.5}}, "memory_gib|GiB"),
    ],
)
def test_impossible_requests_are_refused_by_name(pair: Path, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        tiny_plan(pair, **fields)
    assert re.search(named, f"{caught.value.param} {caught.value.message}")


def test_a_plan_that_fits_nowhere_says_by_how_much_and_what_would_fit() -> None:
    with pytest.raises(InvalidPlan, match=r"GiB too much.*at least \d+ GiB"):
        real_plan(labeled_budget=2000, teacher="Qwen/Qwen3-32B", lora=False)


def test_real_data_plans_for_the_tiny_pair(pair: Path, gsm8k: Path) -> None:
    lengths = sorted(len(json.loads(line)["question"]) for line in (gsm8k / "train.jsonl").open())
    data = DataSummary(
        file_id="file-1", sha256="0" * 64, labeled=len(lengths), unlabeled=0,
        mean_prompt_chars=sum(lengths) / len(lengths), p95_prompt_chars=lengths[len(lengths) * 95 // 100],
    )  # fmt: skip
    plan = tiny_plan(pair, data, training_file="file-1", on_gate_failure="continue")
    assert plan.data.labels.total == 7473
    assert plan.data.file_sha256 == data.sha256
    assert plan.max_prompt_tokens > data.p95_prompt_chars  # one token a character
    assert plan.max_prompt_tokens + plan.max_completion_tokens <= 1024
    with pytest.raises(InvalidPlan, match=r"7,474.*7,473"):
        tiny_plan(pair, data, training_file="file-1", labeled_budget=7474)


def test_a_file_must_hold_what_the_plan_counts_on(pair: Path) -> None:
    plan = tiny_plan(pair, labeled_budget=400, unlabeled_prompts=900)
    check_against_data(plan, 400, 900)
    check_against_data(plan, 4000, 9000)
    with pytest.raises(InvalidPlan, match=r"400 labels.*399"):
        check_against_data(plan, 399, 900)
    need = plan.data.bridge_prompts
    with pytest.raises(InvalidPlan, match=rf"{need:,} prompts.*{need - 1:,}"):
        check_against_data(plan, 400, 899)


def test_an_edited_plan_is_noticed(pair: Path) -> None:
    document = json.loads(tiny_plan(pair, labeled_budget=400).model_dump_json())
    document["stages"][0]["steps"] += 1
    with pytest.raises(InvalidPlan, match="does not match its id"):
        load_plan(json.dumps(document))


def test_the_seed_changes_every_seed(pair: Path) -> None:
    one, two = (tiny_plan(pair, labeled_budget=400, seed=seed) for seed in (1, 2))
    assert one.id != two.id
    assert not {stage.seed for stage in one.stages} & {stage.seed for stage in two.stages}


def test_both_pages_say_what_matters() -> None:
    plan = real_plan(labeled_budget=200)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(to_rich(plan))
    for page in (to_markdown(plan), console.export_text()):
        assert plan.id in page
        for stage in plan.stages:
            assert stage.kind in page
        for warning in plan.warnings:
            assert warning.message in re.sub(r"\s*│\s*│\s*|\s+", " ", page)
        assert "LoRA" in page
        assert "C1" in page
