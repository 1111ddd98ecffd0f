"""Every default can be overridden: the plan shows the value, and a value that cannot work is refused with the reason.

The fields are those of the request's models, so that a new one fails here until it has a row.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from plan_pair import CPU, policy, write_pair
from pydantic import BaseModel

from s2d.errors import InvalidPlan, InvalidRequest
from s2d.plan import service
from s2d.plan.document import Plan
from s2d.plan.models import ModelPolicy
from s2d.plan.prompting import Prompting
from s2d.plan.request import PlanRequest, read_request
from s2d.verifiers.base import VerifierSpec

#: What is asked about, and no default.
QUESTION = {"teacher", "student", "labeled_budget", "training_file", "unlabeled_prompts", "evidence"}
BASE = {"labeled_budget": 2000, "unlabeled_prompts": 8000, "controls": ["direct_grpo"]}
GPU = {"hardware": {"device": "cuda", "memory_gib": 24}}

#: Field, of any stage by its name alone -> a value that works and differs from the default, and one that cannot work.
CASES: dict[str, tuple[Any, Any]] = {
    "temperature": (0.9, 0),
    "top_p": (0.5, 1.5),
    "top_k": (7, -1),
    "steps": (33, 0),
    "learning_rate": (4e-5, 2),
    "schedule": ("cosine", "jagged"),
    "warmup_steps": (1, -1),
    "weight_decay": (0.25, -0.1),
    "max_grad_norm": (0.5, 0),
    "beta1": (0.8, 1),
    "beta2": (0.9, 1),
    "per_device_batch_size": (2, 7),
    "gradient_checkpointing": (True, "sometimes"),
    "sharded": (True, "by half"),
    "save_every": (3, 0),
    "prompts_per_step": (12, 100_000),
    "group_size": (6, 1),
    "epsilon": (0.1, 0),
    "epsilon_high": (0.3, 0),
    "beta": (0.01, -1),
    "scale_rewards": ("batch", "all"),
    "loss_type": ("grpo", "ppo"),
    "learning_rates": ((1e-5, 2e-5), (1e-5, 1e-5)),
    "prompts": (100, 100_000),
    "samples_per_prompt": (3, 0),
    "batch_size": (5, 10**9),
    "token_share": (0.5, 0),
    "prefix_share": (0.5, 1.1),
    "sequences_per_step": (24, 10**6),
    "max_steps": (170, 0),
    "check_every": (7, 0),
    "score_once": (True, "maybe"),
    "extrapolate": ((0.5, 1.0), (1.0, 0.5)),
    "k": (3, 0),
    "verifier": ("exact", "telepathy"),
    "hardware.device": ("cuda", "tpu"),
    "hardware.devices": (2, 5000),
    "hardware.memory_gib": (6.5, 0.1),
    "hardware.cpu_threads": (3, 0),
    "hardware.name": ("H100", 3),
    "hardware.tflops": (7.0, 0),
    "hardware.bandwidth_gbs": (70.0, 0),
    "hardware.price_per_hour": (2.5, float("inf")),
    "seed": (5, -1),
    "controls": (("opd_only",), ["magic"]),
    "compute_matched": (True, "perhaps"),
    "on_gate_failure": ("continue", "pray"),
    "gates.c1.k": (2, 0),
    "gates.c1.min_gain": (0.1, 1),
    "gates.c1.confidence": (0.9, 0.5),
    "gates.c2.max_kl": (0.2, 0),
    "gates.c2.min_agreement": (0.9, 1.5),
    "gates.c2.prompts": (50, 5000),
    "student_rl": (False, "later"),
    "labels.teacher_rl": (700, 2000),
    "labels.student_rl": (300, 2000),
    "labels.validation": (150, 1),
    "labels.test": (500, 2000),
    "bridge_prompts": (500, 9_999_999),
    "prompt.system": ("Think.", ""),
    "prompt.suffix": ("Answer with a number.", ""),
    "prompt.template": ({"enable_thinking": False}, {"messages": 1}),
    "max_prompt_tokens": (64, 5000),
    "max_completion_tokens": (32, 5000),
    "mean_completion_tokens": (20.0, 5000),
    "lora": (True, "some"),
    "lora.rank": (8, 0),
    "lora.alpha": (8, 0),
    "lora.dropout": (0.1, 1),
    "lora.target_modules": ("all-linear", "some"),
    "rollout_engine": ("vllm", "pencil"),
}
#: What a field needs beside it.
BESIDE: dict[str, dict[str, Any]] = {
    "hardware.device": {"hardware": {"memory_gib": 24}},
    "hardware.devices": GPU,
    "sharded": {"hardware": {"device": "cuda", "devices": 2, "memory_gib": 24}},
    "rollout_engine": GPU,
}


def fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Paths of all fields that hold a value: those of nested models, and themselves where they also take another."""
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        choices = (field.annotation, *get_args(field.annotation))
        inner = [
            one for one in choices if isinstance(one, type) and issubclass(one, BaseModel) and one is not VerifierSpec
        ]
        if not inner or bool in choices:
            yield path
        for one in inner:
            yield from fields(one, f"{path}.")


FIELDS = [path for path in fields(PlanRequest) if path.split(".")[0] not in QUESTION]


def case(path: str) -> str:
    """The key of the field's values."""
    return path.rpartition(".")[2] if path.startswith("stages.") else path


def request_with(path: str, value: Any) -> dict[str, Any]:
    """The base request with one field set."""
    *above, last = path.split(".")
    wanted = {**BASE, **BESIDE.get(case(path), {})}
    place = wanted
    for name in above:
        place[name] = dict(place.get(name, {}))
        place = place[name]
    place[last] = value
    return wanted


def shown(plan: Plan, path: str) -> Any:
    """The field's value in the plan."""
    names = path.split(".")
    match names:
        case ["stages", "direct_grpo", "learning_rates"]:
            return tuple(stage.optim.learning_rate for stage in plan.stages if stage.id[:-1] == "direct_grpo_")
        case ["stages", stage, name]:
            one = plan.stage(stage)
            places = [one, getattr(one, "optim", None), getattr(one, "sampling", None)]
            return next(getattr(place, name) for place in places if hasattr(place, name))
        case ["labels", name]:
            return getattr(plan.data.labels, name)
        case ["bridge_prompts"]:
            return plan.data.bridge_prompts
        case ["verifier"]:
            return plan.verifier.name
        case ["on_gate_failure"]:
            return plan.gates.on_failure
        case ["student_rl"]:
            return "student_rl" in plan.ids()
        case ["compute_matched"]:
            return any(getattr(stage, "compute_of", None) for stage in plan.stages)
        case ["lora"]:
            return plan.stage("teacher_rl").lora is not None
        case ["lora", name]:
            return getattr(plan.stage("teacher_rl").lora, name, None)
    found: Any = plan
    for name in names:
        found = getattr(found, name)
    return found


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("pair")
    write_pair(root)
    read: dict[str, service.Pair] = {}

    def once(teacher: str, student: str, policy: ModelPolicy, prompting: Prompting) -> service.Pair:
        if str(prompting) not in read:
            read[str(prompting)] = read_pair(teacher, student, policy, prompting)
        return read[str(prompting)]

    read_pair = service.read_pair
    with pytest.MonkeyPatch.context() as patch:
        # Nearly all of a plan's time, and the same for hundreds of them.
        patch.setattr(service, "read_pair", once)
        yield root


@pytest.fixture(scope="module")
def default(pair: Path) -> Plan:
    return planned(pair, BASE)


def planned(pair: Path, wanted: dict[str, Any]) -> Plan:
    request = read_request({"teacher": str(pair / "teacher"), "student": str(pair / "student")} | wanted)
    return service.make_plan(request, None, CPU, policy(pair))


def test_every_field_has_values_and_all_values_have_a_field() -> None:
    assert set(CASES) == set(map(case, FIELDS))


@pytest.mark.parametrize("path", FIELDS)
def test_what_is_asked_for_is_in_the_plan_and_is_not_the_default(pair: Path, default: Plan, path: str) -> None:
    value, _ = CASES[case(path)]
    plan = planned(pair, request_with(path, value))
    assert shown(plan, path) == value
    assert shown(default, path) != value


@pytest.mark.parametrize("path", FIELDS)
def test_what_cannot_work_is_refused_by_name_with_the_reason(pair: Path, path: str) -> None:
    _, value = CASES[case(path)]
    with pytest.raises(InvalidRequest) as caught:
        planned(pair, request_with(path, value))
    said = f"{caught.value.param}: {caught.value.message}"
    assert path.rpartition(".")[2] in said
    assert len(caught.value.message.split()) > 6, "a name alone is no reason"


#: The last stage that has it stands for the others.
NUMBERS = {case(path): path for path in FIELDS if case(path) in CASES and type(CASES[case(path)][0]) in (int, float)}


@pytest.mark.parametrize("path", NUMBERS.values())
@pytest.mark.parametrize("extreme", [1, 1e-300, 1e300, 10**9, 10**400], ids=["1", "tiny", "huge", "billion", "endless"])
def test_an_absurd_number_is_planned_with_or_refused(pair: Path, path: str, extreme: float) -> None:
    # A refusal is an answer; any other error is not.
    with suppress(InvalidRequest):
        planned(pair, request_with(path, extreme))


@pytest.mark.parametrize(
    ("wish", "param"),
    [
        ({"name": "GPU of next year"}, "hardware.memory_gib"),
        ({"name": "H100", "device": "cpu"}, "hardware.name"),
        ({"device": "cpu", "devices": 2}, "hardware.devices"),
        ({"device": "cuda"}, "hardware.memory_gib"),
    ],
)
def test_a_machine_that_would_be_another_is_refused(pair: Path, wish: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidPlan) as caught:
        planned(pair, {**BASE, "hardware": wish})
    assert caught.value.param == param


def test_an_unknown_gpu_with_its_memory_is_a_gpu(pair: Path) -> None:
    hardware = planned(pair, {**BASE, "hardware": {"name": "GPU of next year", "memory_gib": 300}}).hardware
    assert (hardware.device, hardware.name, hardware.memory_gib) == ("cuda", "GPU of next year", 300)


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"gradient_checkpointing": False, "per_device_batch_size": 128}, "gradient_checkpointing False"),
        ({"per_device_batch_size": 64}, "per_device_batch_size 64"),
        ({"group_size": 4096}, "group_size 4096"),
        ({"prompts_per_step": 512, "group_size": 64}, "prompts_per_step 512"),
    ],
)
def test_a_setting_that_makes_a_stage_too_large_is_named_and_it_says_by_how_much(
    pair: Path, wish: dict[str, Any], said: str
) -> None:
    wanted = {**BASE, "hardware": {"memory_gib": 1.7}}
    planned(pair, wanted)
    with pytest.raises(InvalidPlan) as caught:
        planned(pair, {**wanted, "stages": {"teacher_rl": wish}})
    assert caught.value.param == "stages.teacher_rl"
    assert said in caught.value.message
    missing = re.search(r"needs about ([\d.]+) GiB.* and ([\d.]+) of .*: ([\d.]+) GiB too much", caught.value.message)
    assert missing, "more than there is, never a negative number"
    needed, usable, over = map(float, missing.groups())
    assert over == pytest.approx(needed - usable, abs=0.11)
