"""Requests that make no sense, or mean harm: refused with field and reason, or planned with a warning."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from plan_pair import CPU, config, policy, write_model, write_pair
from pydantic import BaseModel

from s2d.errors import S2DError
from s2d.plan.catalog import CATALOG
from s2d.plan.document import Plan, load_plan
from s2d.plan.models import ModelPolicy
from s2d.plan.names import Control
from s2d.plan.request import DataSummary, PlanRequest, read_request
from s2d.plan.service import make_plan
from s2d.verifiers.base import KNOWN

OFFLINE = ModelPolicy(allow_hub=False)
H100 = {"device": "cuda", "name": "H100"}
USUAL: dict[str, Any] = {
    "teacher": "Qwen/Qwen3-8B",
    "student": "Qwen/Qwen3-1.7B",
    "labeled_budget": 1200,
    "unlabeled_prompts": 4000,
    "hardware": H100,
}
HUGE = 10**400
NAN, INF = float("nan"), float("inf")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def planned(fields: dict[str, Any], models: ModelPolicy = OFFLINE, data: DataSummary | None = None) -> Plan:
    return make_plan(read_request({**USUAL, **fields}), data, CPU, models)


def hardware(**fields: Any) -> dict[str, Any]:
    return {"hardware": {**H100, **fields}}


def stage(name: str, **fields: Any) -> dict[str, Any]:
    return {"stages": {name: fields}}


#: Fields → code, param and a phrase of the message.
REFUSED: list[tuple[dict[str, Any], str, str, str]] = [
    # Budgets
    *[({"labeled_budget": n}, "invalid_plan", "labeled_budget", "greater than or equal to 1") for n in (0, -5, -HUGE)],
    ({"labeled_budget": 1}, "invalid_plan", "labeled_budget", "too few"),
    ({"labeled_budget": 10**12}, "invalid_plan", "labeled_budget", "less than or equal to 10000000"),
    ({"labeled_budget": HUGE}, "invalid_plan", "labeled_budget", "less than or equal to 10000000"),
    ({"labeled_budget": NAN}, "invalid_plan", "labeled_budget", "finite"),
    ({"labeled_budget": 100.5}, "invalid_plan", "labeled_budget", "integer"),
    ({"labeled_budget": "many"}, "invalid_plan", "labeled_budget", "integer"),
    ({"labeled_budget": None}, "invalid_plan", "request", "labeled_budget or training_file"),
    ({"unlabeled_prompts": -1}, "invalid_plan", "unlabeled_prompts", "greater than or equal to 0"),
    ({"unlabeled_prompts": 10**12}, "invalid_plan", "unlabeled_prompts", "less than or equal to"),
    ({"bridge_prompts": 10**6}, "invalid_plan", "bridge_prompts", "there are"),
    ({"labels": {"test": 5000}}, "invalid_plan", "labels", "do not fit in 1200"),
    ({"labels": {"teacher_rl": HUGE}}, "invalid_plan", "labels.teacher_rl", "less than or equal to"),
    ({"labels": {"validation": 0}}, "invalid_plan", "labels.validation", "greater than or equal to 2"),
    # Machines
    (hardware(memory_gib=0), "invalid_plan", "hardware.memory_gib", "greater than 0"),
    (hardware(memory_gib=-80), "invalid_plan", "hardware.memory_gib", "greater than 0"),
    (hardware(memory_gib=NAN), "invalid_plan", "hardware.memory_gib", "finite"),
    (hardware(memory_gib=INF), "invalid_plan", "hardware.memory_gib", "finite"),
    (hardware(memory_gib=1e12), "invalid_plan", "hardware.memory_gib", "less than or equal to"),
    (hardware(memory_gib=0.1), "invalid_plan", "*", "of 0.1 GiB can be used"),
    (hardware(memory_gib=5e-324), "invalid_plan", "*", "GiB can be used"),
    (hardware(devices=0), "invalid_plan", "hardware.devices", "greater than or equal to 1"),
    (hardware(devices=10**6), "invalid_plan", "hardware.devices", "less than or equal to 1024"),
    ({**hardware(devices=1024), "labeled_budget": 100}, "invalid_plan", "hardware.devices", "use fewer devices"),
    ({"hardware": {"device": "cpu", "devices": 4}}, "invalid_plan", "hardware.devices", "one training process"),
    ({"hardware": {"device": "cuda", "name": "?"}}, "invalid_plan", "hardware.memory_gib", "not in the table"),
    ({"hardware": {"device": "tpu"}}, "invalid_plan", "hardware.device", "cpu"),
    (hardware(name=""), "invalid_plan", "hardware.name", "at least 1 character"),
    (hardware(name="x" * 10**5), "invalid_plan", "hardware.name", "at most 100"),
    (hardware(tflops=1e-300), "invalid_plan", "hardware.tflops", "greater than or equal to"),
    (hardware(bandwidth_gbs=INF), "invalid_plan", "hardware.bandwidth_gbs", "finite"),
    (hardware(cpu_threads=HUGE), "invalid_plan", "hardware.cpu_threads", "less than or equal to"),
    # Models
    ({"teacher": ""}, "invalid_plan", "teacher", "at least 1 character"),
    ({"teacher": "x" * 600}, "invalid_plan", "teacher", "at most 512"),
    ({"student": None}, "invalid_plan", "student", "string"),
    ({"teacher": "someone/unknown-model"}, "invalid_plan", "teacher", "hub is switched off"),
    *[
        ({"student": name}, "invalid_plan", "student", "neither a local folder nor a hub id")
        for name in (
            " ",
            "a b",
            "Qwen/../Qwen3-8B",
            "a/b/c",
            "https://x.org/m",
            "a\0b",
            "Ｑwen/Qwen3-8B",
            "-x/y",
            "a/..",
        )
    ],
    *[
        ({"teacher": name}, "model_refused", "teacher", "outside the folders")
        for name in (
            "/etc",
            "../..",
            "~",
            "~root/m",
            "~nobody-of-this-name/m",
            "\\\\host\\m",
            "/proc/self/root",
            "./\0",
        )
    ],
    ({"student": "Qwen/Qwen3-8B"}, "incompatible_pair", "student", "same model"),
    ({"student": "qwen/QWEN3-8b"}, "incompatible_pair", "student", "same model"),
    ({"student": "Qwen/Qwen2.5-1.5B-Instruct"}, "incompatible_pair", "student", "family"),
    ({"teacher": "Qwen/Qwen3-1.7B-Base"}, "incompatible_pair", "student", "family"),
    # Lengths
    ({"max_prompt_tokens": 0}, "invalid_plan", "max_prompt_tokens", "greater than or equal to 1"),
    ({"max_prompt_tokens": 40_960}, "invalid_plan", "max_prompt_tokens", "context is 40,960"),
    ({"max_completion_tokens": 40_960}, "invalid_plan", "max_completion_tokens", "context is 40,960"),
    ({"max_completion_tokens": HUGE}, "invalid_plan", "max_completion_tokens", "context is 40,960"),
    (
        {"max_prompt_tokens": 20_000, "max_completion_tokens": 20_961},
        "invalid_plan",
        "max_completion_tokens",
        "more than the models' context of 40,960",
    ),
    # Verifiers
    ({"verifier": "vibes"}, "invalid_request", "verifier.name", "known are"),
    ({"verifier": ""}, "invalid_request", "verifier.name", "known are"),
    ({"verifier": {"name": "vibes"}}, "invalid_request", "verifier.name", "known are"),
    ({"verifier": {"name": "choice", "options": {"choices": 7}}}, "invalid_request", "verifier.options.choices", ""),
    # Settings
    (stage("teacher_rl", steps=0), "invalid_plan", "stages.teacher_rl.steps", "greater than or equal to 1"),
    (stage("teacher_rl", steps=HUGE), "invalid_plan", "stages.teacher_rl.steps", "less than or equal to"),
    (stage("teacher_rl", group_size=1), "invalid_plan", "stages.teacher_rl.group_size", "greater than or equal to 2"),
    (stage("teacher_rl", group_size=HUGE), "invalid_plan", "stages.teacher_rl.group_size", "less than or equal to"),
    (stage("teacher_rl", prompts_per_step=5000), "invalid_plan", "stages.teacher_rl.prompts_per_step", "the stage has"),
    (stage("teacher_rl", learning_rate=NAN), "invalid_plan", "stages.teacher_rl.learning_rate", "finite"),
    (stage("teacher_rl", learning_rate=-1e-6), "invalid_plan", "stages.teacher_rl.learning_rate", "greater than 0"),
    (stage("teacher_rl", temperature=0), "invalid_plan", "stages.teacher_rl.temperature", "greater than"),
    (stage("teacher_rl", per_device_batch_size=HUGE), "invalid_plan", "stages.teacher_rl.per_device_batch_size", ""),
    (stage("warmup", steps=50, max_steps=10), "invalid_plan", "stages.warmup", "below steps"),
    (stage("warmup", sequences_per_step=HUGE), "invalid_plan", "stages.warmup.sequences_per_step", ""),
    (stage("opd", extrapolate=[2, 1]), "invalid_plan", "stages.opd", "must rise"),
    (stage("opd", token_share=0), "invalid_plan", "stages.opd.token_share", "greater than 0"),
    (stage("evaluate", batch_size=HUGE), "invalid_plan", "stages.evaluate.batch_size", ""),
    (stage("evaluate", k=HUGE), "invalid_plan", "stages.evaluate.k", "less than or equal to 1024"),
    (stage("cooking", steps=1), "invalid_plan", "stages.cooking", "not permitted"),
    ({"lora": {"rank": HUGE}}, "invalid_plan", "lora", "at most 65,536"),
    ({"lora": {"rank": 0}}, "invalid_plan", "lora.rank", "greater than or equal to 1"),
    ({"lora": "adapters"}, "invalid_plan", "lora", "valid boolean"),
    ({"gates": {"c1": {"k": HUGE}}}, "invalid_plan", "gates", "at most 1,024"),
    ({"gates": {"c2": {"prompts": 10**9}}}, "invalid_plan", "gates.c2.prompts", "validation problems"),
    ({"gates": {"c2": {"max_kl": INF}}}, "invalid_plan", "gates.c2.max_kl", "finite"),
    ({"seed": -1}, "invalid_plan", "seed", "greater than or equal to 0"),
    ({"seed": 2**31}, "invalid_plan", "seed", "less than 2147483648"),
    ({"controls": ["sorcery"]}, "invalid_plan", "controls.0", "direct_grpo"),
    ({"prompt": {"template": {"messages": "mine"}}}, "invalid_plan", "prompt", "cannot set messages"),
    ({"rollout_engine": "vllm", "hardware": {"device": "cpu"}}, "invalid_plan", "rollout_engine", "needs a GPU"),
    ({"no_such_field": 1}, "invalid_plan", "no_such_field", "not permitted"),
    ({"__class__": "x"}, "invalid_plan", "__class__", "not permitted"),
]


@pytest.mark.parametrize(
    ("fields", "code", "param", "phrase"), REFUSED, ids=[f"{n}-{row[2]}" for n, row in enumerate(REFUSED)]
)
def test_what_cannot_work_is_refused_by_name(fields: dict[str, Any], code: str, param: str, phrase: str) -> None:
    with pytest.raises(S2DError) as caught:
        planned(fields)
    error = caught.value
    assert error.code == code
    assert error.param is not None
    assert param in ("*", error.param)
    assert phrase in error.message
    assert len(error.message) < 2000


@pytest.mark.parametrize(
    ("fields", "code", "phrase"),
    [
        ({"teacher": "Qwen/Qwen3-0.6B"}, "teacher_smaller", "596,049,920"),
        ({"max_prompt_tokens": 1}, "short_prompts", "more than 1 tokens are dropped"),
        ({"unlabeled_prompts": 0, "labeled_budget": 20}, "few_bridge_prompts", "distinct prompts"),
        ({"labeled_budget": 10_000_000, "hardware": {"device": "cpu", "memory_gib": 4096}}, "long_job", "days"),
        ({}, "pair_not_checked", "Qwen/Qwen3-8B and Qwen/Qwen3-1.7B are not"),
    ],
)
def test_what_may_work_is_planned_with_a_warning(fields: dict[str, Any], code: str, phrase: str) -> None:
    messages = {warning.code: warning.message for warning in planned(fields).warnings}
    assert phrase in messages[code]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pair")
    teacher, _ = write_pair(root)
    shutil.copytree(teacher, root / "copy")
    (root / "link").symlink_to(teacher)
    write_model(root / "short", config(48, 2, 4, 96, max_position_embeddings=1))
    return root


def test_a_student_that_is_the_teacher_is_found_behind_links_and_relative_paths(
    pair: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair)
    for student in ("link", "./teacher", "teacher/../teacher", str(pair / "link" / ".." / "link"), f"{pair}//teacher/"):
        with pytest.raises(S2DError, match="same model") as caught:
            planned({"teacher": str(pair / "teacher"), "student": student, "hardware": {"device": "cpu"}}, policy(pair))
        assert (caught.value.code, caught.value.param) == ("incompatible_pair", "student")


def test_the_same_weights_in_another_folder_are_warned_of(pair: Path) -> None:
    names = {"teacher": str(pair / "teacher"), "student": str(pair / "copy")}
    plan = planned({**names, "hardware": {"device": "cpu"}}, policy(pair))
    assert "same_weights" in [warning.code for warning in plan.warnings]


def test_a_context_with_no_room_for_an_answer_is_refused(pair: Path) -> None:
    names = {"teacher": str(pair / "teacher"), "student": str(pair / "short")}
    with pytest.raises(S2DError, match="context of 1 tokens"):
        planned({**names, "hardware": {"device": "cpu"}}, policy(pair))


def together() -> list[tuple[str, str]]:
    """Pairs that can be planned for: local folders, and models of the catalog of one family and width."""
    found = {}
    for teacher, one in CATALOG.items():
        for student, two in CATALOG.items():
            key = (one.family, one.config["vocab_size"], teacher)
            if teacher != student and key[:2] == (two.family, two.config["vocab_size"]):
                found.setdefault(key, (teacher, student))
    return [("teacher", "student"), ("student", "teacher"), ("teacher", "copy"), *found.values()]


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


sane = st.fixed_dictionaries(
    {
        "pair": st.sampled_from(together()),
        "labeled_budget": st.integers(16, 100_000),
        "hardware": st.fixed_dictionaries(
            {"device": st.just("cuda"), "name": st.just("H100")},
            optional={"devices": st.integers(1, 1024), "memory_gib": st.floats(0.1, 60_000)},
        ),
    },
    optional={
        "unlabeled_prompts": st.integers(0, 100_000),
        "max_prompt_tokens": st.integers(1, 5000),
        "max_completion_tokens": st.integers(1, 140_000),
        "mean_completion_tokens": st.floats(1, 1e308),
        "student_rl": st.booleans(),
        "controls": st.lists(st.sampled_from(get_args(Control)), max_size=3, unique=True),
        "lora": st.booleans() | st.fixed_dictionaries({"rank": st.integers(1, 65_536)}),
        "gates": some(c1=some(k=st.integers(1, 1024))),
        "stages": some(
            teacher_rl=some(
                steps=st.integers(1, 10**6), group_size=st.integers(2, 1024), learning_rate=st.floats(1e-300, 1)
            ),
            warmup=some(sequences_per_step=st.integers(1, 500), max_steps=st.integers(1, 10**6)),
            evaluate=some(k=st.integers(1, 1024), batch_size=st.integers(1, 10**6)),
        ),
    },
)


def paths(model: type[BaseModel], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every field of a request, those of its parts too."""
    for name, field in model.model_fields.items():
        here = (*before, name)
        yield here
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from paths(kind, here)


counts = st.integers(-2, 2**34) | st.integers(1, 300) | st.sampled_from([HUGE, -HUGE, 0, 1])
reals = st.floats() | st.sampled_from([0.1, 1.0, 8.0, 5e-324, 1e308])
words = st.text(max_size=5) | st.sampled_from(["cpu", "cuda", "A100", "Qwen/Qwen3-8B", "short", "../x", *KNOWN])
anything = counts | reals | words | st.none() | st.booleans() | st.lists(counts | reals, max_size=3)
#: The deepest first, as hypothesis likes those. The models are what the other tests here are about.
fields_to_change = sorted(
    (path for path in paths(PlanRequest) if path[0] not in ("teacher", "student")), key=len, reverse=True
)
likely = st.integers(1, 300) | st.floats(0.01, 0.9) | st.booleans()
wild = st.lists(st.tuples(st.sampled_from(fields_to_change), likely | anything), min_size=1, max_size=3)


def changed(fields: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The fields with one of them set, however deep it is."""
    first, rest = path[0], path[1:]
    inner = fields.get(first)
    return {**fields, first: changed(inner if isinstance(inner, dict) else {}, rest, value) if rest else value}


def numbers_in(value: Any) -> list[float]:
    if isinstance(value, dict):
        return [n for one in value.values() for n in numbers_in(one)]
    if isinstance(value, list):
        return [n for one in value for n in numbers_in(one)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def outcome(fields: dict[str, Any], root: Path) -> Plan | S2DError:
    teacher, student = fields.pop("pair")
    fields = {"teacher": teacher, "student": student} | fields
    local = {role: str(root / name) for role, name in fields.items() if name in ("teacher", "student", "copy", "short")}
    try:
        return make_plan(read_request({**fields, **local}), None, CPU, ModelPolicy(roots=(root,), allow_hub=False))
    except S2DError as err:
        return err


def check_outcome(fields: dict[str, Any], root: Path) -> None:
    """A sound plan, or a refusal that says what and why; nothing else may come out."""
    found = outcome(fields, root)
    event("planned" if isinstance(found, Plan) else f"refused {found.param}")
    if isinstance(found, S2DError):
        assert found.message
        assert found.param
        assert found.status < 500
        return
    assert all(n >= 0 for n in numbers_in(json.loads(found.model_dump_json())))
    assert found.stages
    assert all(getattr(stage, "steps", 1) > 0 for stage in found.stages)
    assert found.max_prompt_tokens + found.max_completion_tokens <= min(found.teacher.context, found.student.context)
    assert load_plan(found.model_dump_json()) == found


HYPOTHESIS = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


@given(fields=sane, changes=wild)
@HYPOTHESIS
def test_any_value_of_any_field_gives_a_sound_plan_or_a_refusal_that_says_why(
    fields: dict[str, Any], changes: list[tuple[tuple[str, ...], Any]], pair: Path
) -> None:
    for path, value in changes:
        fields = changed(fields, path, value)
    check_outcome(fields, pair)


@given(fields=sane)
@HYPOTHESIS
def test_the_far_ends_of_every_range_give_a_sound_plan_or_a_refusal(fields: dict[str, Any], pair: Path) -> None:
    check_outcome(fields, pair)
