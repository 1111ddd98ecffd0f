"""What must be monotone, is: more labels never plan fewer for the teacher, and what fits still fits with more room."""

from __future__ import annotations

from typing import Any

from hypothesis import assume, given, settings
from hypothesis import strategies as st
from plan_pair import CPU

from s2d.errors import InvalidPlan
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import Draft, draft_plan, read_pair

PAIRS = [
    read_pair(teacher, student, ModelPolicy(allow_hub=False))
    for teacher, student in (
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-4B"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-0.6B"),
        ("Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"),
    )
]
training = {
    "per_device_batch_size": st.sampled_from([1, 2, 4, 8, 3]),
    "gradient_checkpointing": st.booleans(),
    "steps": st.integers(1, 500),
    "warmup_steps": st.integers(0, 300),
}
grpo = training | {"prompts_per_step": st.sampled_from([1, 4, 16, 64]), "group_size": st.integers(2, 16)}
bridge = training | {"sequences_per_step": st.sampled_from([1, 4, 16, 64])}
stages = {
    "teacher_rl": st.fixed_dictionaries({}, optional=grpo),
    "warmup": st.fixed_dictionaries({}, optional=bridge),
    "opd": st.fixed_dictionaries({}, optional=bridge | {"prefix_share": st.floats(0.1, 1)}),
    "evaluate": st.fixed_dictionaries({}, optional={"k": st.integers(1, 64), "batch_size": st.integers(1, 512)}),
}
requests = st.fixed_dictionaries(
    {
        "labeled_budget": st.integers(16, 20_000),
        "unlabeled_prompts": st.integers(0, 20_000),
        "hardware": st.fixed_dictionaries(
            {
                "device": st.sampled_from(["cuda", "cuda", "cpu"]),
                "memory_gib": st.sampled_from([16, 24, 40, 64, 80, 141, 400]),
            }
        ),
    },
    optional={
        "lora": st.sampled_from([True, False, {"rank": 8}, {"rank": 256}]),
        "student_rl": st.booleans(),
        "controls": st.lists(st.sampled_from(["direct_grpo", "opd_only", "raw_teacher_bridge"]), unique=True),
        "max_completion_tokens": st.integers(1, 16_384),
        "max_prompt_tokens": st.integers(1, 4096),
        "labels": st.fixed_dictionaries({}, optional={"validation": st.integers(2, 300), "test": st.integers(1, 900)}),
        "stages": st.fixed_dictionaries({}, optional=stages),
    },
)
cases = st.tuples(st.sampled_from(PAIRS), requests, st.sampled_from([1, 2, 4, 8]))


def planned(case: tuple[Any, dict[str, Any], int], **changes: Any) -> Draft | None:
    """The draft, or None where nothing can be planned."""
    pair, fields, devices = case
    hardware = fields["hardware"] | changes.pop("hardware", {})
    if hardware["device"] == "cuda":
        hardware["devices"] = devices
    models = {"teacher": pair.teacher.name, "student": pair.student.name}
    try:
        return draft_plan(read_request(models | fields | changes | {"hardware": hardware}), None, CPU, pair)
    except InvalidPlan:
        return None


@given(cases, st.integers(1, 20_000))
@settings(max_examples=60, deadline=None)
def test_more_labels_never_plan_fewer_for_the_teacher(case: Any, more: int) -> None:
    fewer = planned(case)
    richer = planned(case, labeled_budget=case[1]["labeled_budget"] + more)
    assume(fewer and richer)
    assert fewer
    assert richer
    assert richer.setting.labels.teacher_rl >= fewer.setting.labels.teacher_rl


@given(cases, st.floats(1.0001, 8))
@settings(max_examples=100, deadline=None)
def test_more_memory_never_makes_a_plan_infeasible(case: Any, times: float) -> None:
    assume(planned(case))
    assert planned(case, hardware={"memory_gib": times * case[1]["hardware"]["memory_gib"]})


@given(cases, st.floats(0.01, 1))
@settings(max_examples=60, deadline=None)
def test_shorter_completions_never_make_a_plan_infeasible(case: Any, share: float) -> None:
    draft = planned(case)
    assume(draft)
    assert draft
    shorter = max(1, int(share * draft.max_completion_tokens))
    assert planned(case, max_completion_tokens=shorter, max_prompt_tokens=draft.max_prompt_tokens)
