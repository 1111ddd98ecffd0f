"""What-if tables: each row is what `make_plan` says, and what must be monotone is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_pair import CPU, policy, write_pair

from s2d.errors import InvalidPlan, S2DError
from s2d.plan.document import Plan, Training
from s2d.plan.models import ModelPolicy
from s2d.plan.request import DataSummary, read_request
from s2d.plan.service import make_plan
from s2d.plan.whatif import MAX_ROWS, WhatIfRow, read_what_if, what_if

OFFLINE = ModelPolicy(allow_hub=False)
NAMES = ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen2.5-7B-Instruct", "nobody/nothing", "/etc")
PAIR = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B"}

machines = st.fixed_dictionaries(
    {"name": st.sampled_from(["H100", "4090", "no such GPU"])},
    optional={
        "devices": st.sampled_from([1, 4, 7]),
        "memory_gib": st.floats(1, 200),
        "price_per_hour": st.floats(0.1, 100),
    },
)
#: What a request may have beside the two models and the labels.
extras = {
    "seed": st.integers(0, 2**31 - 1),
    "controls": st.sampled_from([["direct_grpo"], ["replay"], ["opd_only", "warmup_only"]]),
    "stages": st.fixed_dictionaries({"warmup": st.fixed_dictionaries({"steps": st.integers(1, 400)})}),
    "prompt": st.just({"suffix": "Think."}),
}
values = {
    "pair": st.fixed_dictionaries({"teacher": st.sampled_from(NAMES), "student": st.sampled_from(NAMES)}),
    "hardware": machines,
    "lora": st.sampled_from([None, True, False, {"rank": 8}]),
    "student_rl": st.sampled_from([None, True, False]),
    "max_completion_tokens": st.sampled_from([None, 64, 2048, 10**6]),
    "unlabeled_prompts": st.integers(0, 20_000),
    "labels": st.sampled_from([{}, {"validation": 40}, {"student_rl": 0}, {"teacher_rl": 700}]),
    "labeled_budget": st.integers(1, 20_000),
}
axes = {name: st.lists(value, min_size=1, max_size=2) for name, value in values.items()}


def rows(plan: dict[str, Any], vary: dict[str, Any], **options: Any) -> list[WhatIfRow]:
    return list(what_if(read_what_if(plan, vary), None, CPU, OFFLINE, **options))


def fields_of(row: WhatIfRow, plan: dict[str, Any]) -> dict[str, Any]:
    return plan | row.asked.model_dump(exclude_none=True)


def planned(fields: dict[str, Any]) -> Plan | S2DError:
    try:
        return make_plan(read_request(fields), None, CPU, OFFLINE)
    except S2DError as err:
        return err


def assert_same(row: WhatIfRow, plan: Plan) -> None:
    """The row against the document, counted on its own."""
    seconds = [sum(getattr(stage.estimate.seconds, end) for stage in plan.stages) for end in ("low", "high")]
    memory = [max(getattr(stage.estimate.memory_gib, end) for stage in plan.stages) for end in ("low", "high")]
    outcome = row.outcome
    assert (row.feasible, row.refusal) == (True, None)
    assert outcome is not None
    assert (outcome.labels, outcome.hardware) == (plan.data.labels, plan.hardware)
    assert (outcome.bridge_prompts, outcome.max_completion_tokens) == (
        plan.data.bridge_prompts,
        plan.max_completion_tokens,
    )
    assert [line.id for line in outcome.stages] == list(plan.ids())
    for line, stage in zip(outcome.stages, plan.stages, strict=True):
        trains = isinstance(stage, Training)
        assert line.steps == (stage.steps if trains else None)
        assert line.weights == (("lora" if stage.lora else "all") if trains else None)
    assert [outcome.memory_gib.low, outcome.memory_gib.high] == memory
    assert [outcome.seconds.low, outcome.seconds.high] == pytest.approx(seconds)
    hours = [outcome.device_hours.low, outcome.device_hours.high]
    assert hours == pytest.approx([one * plan.hardware.devices / 3600 for one in seconds])
    price = plan.hardware.price_per_hour
    if price is None:
        assert outcome.cost is None
    else:
        assert outcome.cost is not None
        assert [outcome.cost.low, outcome.cost.high] == pytest.approx([price * one for one in hours])
    assert list(outcome.warnings) == list(dict.fromkeys(warning.code for warning in plan.warnings))


@given(
    st.fixed_dictionaries({}, optional=extras),
    st.fixed_dictionaries(
        {"pair": axes["pair"], "labeled_budget": axes["labeled_budget"]},
        optional={name: axis for name, axis in axes.items() if name not in ("pair", "labeled_budget")},
    ),
)
@settings(max_examples=40, deadline=None)
def test_a_row_is_what_a_plan_would_say(plan: dict[str, Any], vary: dict[str, Any]) -> None:
    for row in rows(plan, vary):
        made = planned(fields_of(row, plan))
        if isinstance(made, Plan):
            assert_same(row, made)
        else:
            assert (row.feasible, row.outcome) == (False, None)
            assert row.refusal is not None
            assert (row.refusal.code, row.refusal.message, row.refusal.param) == (made.code, made.message, made.param)


def test_every_combination_is_a_row_and_the_budget_changes_first() -> None:
    vary = {"hardware": [{"name": "H100"}, {"name": "4090"}], "labeled_budget": [500, 1000, 2000], "lora": [None, True]}
    request = read_what_if(PAIR, vary)
    table = rows(PAIR, vary)
    assert (request.count, request.varied) == (12, ("hardware", "lora", "labeled_budget"))
    assert [(row.asked.hardware.name, row.asked.lora, row.asked.labeled_budget) for row in table] == [
        (gpu, lora, labels) for gpu in ("H100", "4090") for lora in (None, True) for labels in (500, 1000, 2000)
    ]
    assert {row.asked.teacher for row in table} == {PAIR["teacher"]}


def test_an_impossible_combination_is_a_row_also_when_it_is_the_first() -> None:
    vary = {"labeled_budget": [800], "student_rl": [True, None], "labels": [{"student_rl": 0}, {}]}
    table = rows({**PAIR, "hardware": {"name": "H100"}}, vary)
    assert [row.feasible for row in table] == [False, True, True, True]


def test_nothing_varied_is_the_plan_alone() -> None:
    (row,) = rows({**PAIR, "labeled_budget": 800, "hardware": {"name": "H100"}}, {})
    assert row.feasible


def test_a_value_of_the_plan_gives_way_to_those_that_are_varied() -> None:
    table = rows({**PAIR, "labeled_budget": 800, "hardware": {"name": "H100"}}, {"labeled_budget": [900, 1000]})
    assert [row.outcome.labels.total for row in table if row.outcome] == [900, 1000]


def test_several_processes_make_the_same_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2d.plan.whatif.PART", 3)
    vary = {"hardware": [{"name": "H100"}, {"name": "L4"}], "labeled_budget": [3, 500, 1000, 2000]}
    assert rows(PAIR, vary, processes=2) == rows(PAIR, vary)


def test_a_table_has_an_end() -> None:
    budgets = list(range(16, 16 + 401))
    with pytest.raises(InvalidPlan, match=r"802 rows, and 800 are the most"):
        rows(PAIR, {"labeled_budget": budgets, "lora": [None, True]}, most=800)
    assert MAX_ROWS == 100_000


@pytest.mark.parametrize(
    ("plan", "vary", "named"),
    [
        ({}, {"labeled_budget": [500]}, "teacher"),
        (PAIR, {"hardware": [{"name": "H100"}]}, "labeled_budget"),
        (PAIR, {"labeled_budget": [500, 0]}, "labeled_budget.1"),
        (PAIR, {"labeled_budget": ["many"]}, "labeled_budget.0"),
        (PAIR, {"labeled_budget": [500], "epochs": [1, 2]}, "epochs"),
        (PAIR, {"labeled_budget": [500], "hardware": [{"memory_gib": -1}]}, "hardware.0.memory_gib"),
        ({**PAIR, "epochs": 3}, {"labeled_budget": [500]}, "epochs"),
        (PAIR, {"labeled_budget": [500], "pair": [PAIR] * 65}, "pair"),
    ],
)
def test_a_table_that_cannot_be_is_refused_by_name(plan: dict[str, Any], vary: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidPlan, match=named):
        rows(plan, vary)


def test_a_file_gives_the_labels_of_every_row(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    data = DataSummary(
        file_id="file-1", sha256="0" * 64, labeled=900, unlabeled=70, mean_prompt_chars=90, p95_prompt_chars=200
    )
    request = read_what_if(
        {"teacher": str(teacher), "student": str(student), "training_file": "file-1"},
        {"labeled_budget": [300, 900, 901], "student_rl": [None, True]},
    )
    table = list(what_if(request, data, CPU, policy(tmp_path)))
    assert [row.feasible for row in table] == [True, True, False, True, True, False]
    assert {row.refusal.param for row in table if row.refusal} == {"labeled_budget"}
