"""Memory and time: the formulas against known numbers, and hardware from the request or from nvidia-smi."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plan_pair import CPU, config, policy, write_model

from benchmarks.planner.cells import GRID, TIMED, Cell
from benchmarks.planner.memory import CLOSE, error, expected
from s2d.errors import InvalidPlan
from s2d.plan import memory
from s2d.plan.document import Lora, Sampling, Training
from s2d.plan.hardware import GIB, detect, from_request, known_gpu
from s2d.plan.machine import Hardware
from s2d.plan.memory import Way, Work, kv_bytes, lora_parameters
from s2d.plan.models import ModelPolicy, read_model
from s2d.plan.request import HardwareRequest, read_request
from s2d.plan.service import make_plan
from s2d.plan.sizing import USABLE, Drawing, alternatives, fit, generation_batch, state_gib, told

NONE = ModelPolicy(allow_hub=False)
BIG, SMALL = read_model("Qwen/Qwen3-8B", NONE), read_model("Qwen/Qwen3-1.7B", NONE)
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
GPU = Hardware(device="cuda", devices=1, memory_gib=80, cpu_threads=8, tflops=989, bandwidth_gbs=3350)


def test_the_known_sizes() -> None:
    assert state_gib(BIG) * GIB / 1e9 == pytest.approx(131, abs=0.5)
    assert state_gib(SMALL) * GIB / 1e9 == pytest.approx(27.5, abs=0.5)
    assert kv_bytes(SMALL, 1, 1, "bfloat16") == 112 * 1024
    assert kv_bytes(BIG, 1, 1, "bfloat16") == 144 * 1024


def test_adapters_are_counted_as_peft_makes_them(tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = write_model(tmp_path / "m", config(64, 3, 8, 160, num_key_value_heads=2, head_dim=16))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert lora_parameters(read_model(str(folder), policy(tmp_path)), Lora(rank=4)) == trained


def test_full_is_taken_where_it_fits_and_adapters_where_it_does_not() -> None:
    work = Work(BIG, (), 64, 3072, 1024, generates=True)
    one = fit(work, GPU, (Way(), Way(Lora())))
    assert one is not None
    assert one.way == Way(Lora())
    assert told(one.memory, GPU)["memory_gib"].high <= USABLE * 80
    assert fit(work, GPU, (Way(),)) is None
    roomy = fit(work, GPU.model_copy(update={"memory_gib": 400}), (Way(), Way(Lora())))
    assert roomy is not None
    assert roomy.way == Way()


#: Everything that a training stage's memory follows from.
works = st.builds(
    Work,
    model=st.sampled_from([BIG, SMALL]),
    frozen=st.sampled_from([(), (BIG,)]),
    sequences=st.sampled_from([16, 64]),
    tokens=st.integers(1100, 8192),
    prompt=st.integers(1, 1024),
    generates=st.booleans(),
    reference=st.booleans(),
    measures_kl=st.booleans(),
    vllm=st.booleans(),
)
machines = st.builds(
    Hardware,
    device=st.sampled_from(["cpu", "cuda"]),
    devices=st.integers(1, 2),
    memory_gib=st.floats(1, 400),
    cpu_threads=st.just(8),
    tflops=st.just(100.0),
    bandwidth_gbs=st.just(1000.0),
)
ways = st.sampled_from([Way(), Way(sharded=True), Way(Lora())])


def peak(work: Work, hardware: Hardware, way: Way, batch: int = 4, checkpoint: bool = False) -> float:
    return memory.training(work, hardware, way, batch, checkpoint).total


@given(works, machines, ways, st.booleans())
def test_memory_grows_with_what_needs_it(work: Work, machine: Hardware, way: Way, checkpoint: bool) -> None:
    base = peak(work, machine, way, checkpoint=checkpoint)
    assert peak(replace(work, tokens=work.tokens + 100), machine, way, checkpoint=checkpoint) >= base
    assert peak(replace(work, sequences=2 * work.sequences), machine, way, checkpoint=checkpoint) >= base
    assert peak(replace(work, frozen=(*work.frozen, SMALL)), machine, way, checkpoint=checkpoint) > base
    assert peak(work, machine, way, 8, checkpoint) >= base
    larger = work.model.model_copy(
        update={"layers": work.model.layers + 1, "parameters": work.model.parameters + 10**8}
    )
    assert peak(replace(work, model=larger), machine, way, checkpoint=checkpoint) > base
    assert peak(work, machine, way, checkpoint=True) <= peak(work, machine, way)


@given(works, machines, ways)
def test_the_items_add_up_inside_the_range(work: Work, machine: Hardware, way: Way) -> None:
    fields = told(memory.training(work, machine, way, 4, checkpoint=False), machine)
    total = sum(item.gib for item in fields["memory"])
    assert fields["memory_gib"].low - 0.01 <= total <= fields["memory_gib"].high + 0.01
    assert total == pytest.approx(peak(work, machine, way) / GIB, abs=0.01)


@given(works, machines, st.floats(1, 100))
def test_more_memory_never_makes_a_stage_impossible(work: Work, machine: Hardware, more: float) -> None:
    roomy = machine.model_copy(update={"memory_gib": machine.memory_gib + more})
    choices = (Way(), Way(sharded=True), Way(Lora()))
    if fit(work, machine, choices) is not None:
        assert fit(work, roomy, choices) is not None
    drawing = Drawing(work.model, work.prompt, work.tokens - work.prompt, Sampling())
    try:
        batch = generation_batch(drawing, machine, 64)
    except InvalidPlan:
        return
    assert generation_batch(drawing, roomy, 64) >= batch


@given(works, machines)
def test_the_first_alternative_that_fits_is_the_choice(work: Work, machine: Hardware) -> None:
    tried = alternatives(work, machine, (Way(), Way(sharded=True), Way(Lora())), None, None)
    assert [(one.lora, one.sharded, one.gradient_checkpointing) for one in tried] == [
        (False, False, False), (False, False, True),
        (False, True, False), (False, True, True),
        (True, False, False), (True, False, True),
    ]  # fmt: skip
    chosen = fit(work, machine, (Way(), Way(sharded=True), Way(Lora())))
    fitting = [one for one in tried if not one.over_gib]
    assert (chosen is None) == (not fitting)
    if chosen is None:
        assert all(one.per_device_batch_size == 1 for one in tried)
        return
    # In micro-batches as small as this recomputing comes first.
    while fitting[0].per_device_batch_size < 4 and not fitting[0].gradient_checkpointing:
        fitting = fitting[1:]
    way = chosen.way
    assert (way.lora is not None, way.sharded, chosen.gradient_checkpointing) == (
        fitting[0].lora,
        fitting[0].sharded,
        fitting[0].gradient_checkpointing,
    )
    assert chosen.per_device_batch_size == fitting[0].per_device_batch_size
    assert told(chosen.memory, machine)["memory_gib"].high <= USABLE * machine.memory_gib + 0.001


def test_a_plan_tells_what_did_not_fit_and_by_how_much() -> None:
    request = read_request({"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "labeled_budget": 1200})
    plan = make_plan(request, None, GPU, NONE)
    stage = plan.stage("teacher_rl")
    full = [one for one in stage.alternatives if not one.lora]
    assert all(one.over_gib > 131e9 / GIB - USABLE * 80 for one in full)
    for stage in plan.stages:
        items = {item.name: item.gib for item in stage.estimate.memory}
        assert ("teacher" in items) == (stage.id in ("warmup", "opd"))
        if isinstance(stage, Training):
            fitting = {(one.lora, one.gradient_checkpointing) for one in stage.alternatives if not one.over_gib}
            assert (stage.lora is not None, stage.gradient_checkpointing) in fitting


def test_devices_share_the_states_of_what_does_not_fit_into_one() -> None:
    fields = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "labeled_budget": 1200}
    eight = GPU.model_copy(update={"devices": 8})
    plan = make_plan(read_request(fields), None, eight, NONE)
    teacher, student = plan.stage("teacher_rl"), plan.stage("student_rl")
    assert (teacher.lora, teacher.sharded) == (None, True), "all weights where they can be had, not adapters"
    assert not student.sharded, "only where it is needed"
    items = {item.name: item.gib * GIB for item in teacher.estimate.memory}
    assert items["weights"] == pytest.approx(BIG.parameters * (4 / 8 + 2), rel=0.001)
    assert items["optimizer"] == pytest.approx(BIG.parameters * 8 / 8, rel=0.001)
    assert "shared among 8 devices" in teacher.why
    asked = {**fields, "stages": {"student_rl": {"sharded": True}, "teacher_rl": {"sharded": False}}}
    plan = make_plan(read_request(asked), None, eight, NONE)
    assert plan.stage("student_rl").sharded
    assert plan.stage("teacher_rl").lora is not None


@pytest.mark.parametrize(
    ("more", "stage", "why"),
    [
        ({"hardware": {"name": "H100", "devices": 1}}, {}, "two devices"),
        ({"lora": True}, {}, "LoRA"),
        ({"rollout_engine": "vllm"}, {}, "vllm"),
        ({}, {"token_share": 0.5}, "token_share"),
        ({}, {"extrapolate": (0.5,)}, "extrapolate"),
    ],
)
def test_sharding_is_refused_where_it_cannot_be_and_not_chosen_there(
    more: dict[str, object], stage: dict[str, object], why: str
) -> None:
    fields = {"teacher": "Qwen/Qwen3-8B", "student": "Qwen/Qwen3-1.7B", "labeled_budget": 1200}
    fields |= {"hardware": {"name": "H100", "devices": 2}} | more

    def planned(opd: dict[str, object]) -> Training:
        request = read_request({**fields, "stages": {"opd": opd}})
        machine = from_request(request.hardware, GPU)
        return make_plan(request, None, machine, NONE).stage("opd")

    assert not planned(stage).sharded
    with pytest.raises(InvalidPlan, match=why) as caught:
        planned({**stage, "sharded": True})
    assert caught.value.param == "stages.opd.sharded"


def test_vllm_takes_its_share_of_the_device_and_no_cache_beside_it() -> None:
    work = Work(SMALL, (), 64, 3072, 1024, generates=True)
    embedded, beside = (memory.training(replace(work, vllm=vllm), GPU, Way(), 1, True) for vllm in (False, True))
    assert embedded.kv_cache > 0
    assert (beside.kv_cache, beside.rollout_engine / GIB) == (0, pytest.approx(0.3 * 80))
    assert memory.engine(GPU).total / GIB == pytest.approx(0.9 * 80)


def test_every_device_of_several_keeps_buckets_of_gradients() -> None:
    work = Work(SMALL, (), 64, 3072, 1024, generates=True)
    several = GPU.model_copy(update={"devices": 2})
    one, two = (memory.training(work, machine, Way(), 4, False) for machine in (GPU, several))
    assert two.gradients - one.gradients == 4 * SMALL.parameters


@pytest.mark.parametrize(("part", "grid"), [("memory", GRID), ("times", TIMED)])
def test_the_planner_is_within_15_percent_of_what_was_measured(part: str, grid: tuple[Cell, ...]) -> None:
    rows = json.loads((RESULTS / "planner.json").read_text())[part]["rows"]
    assert [row["cell"] for row in rows] == [cell.name for cell in grid]
    assert {row["cell"]: error(row) for row in rows if abs(error(row)) > CLOSE} == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["states wide", "activations checkpointed", "vocabulary opd"])
def test_a_real_stage_takes_what_the_plan_expects(name: str) -> None:
    from benchmarks.planner.measure import run_cell

    row = run_cell(next(cell for cell in GRID if cell.name == name))
    assert abs(error(row)) <= CLOSE
    planned = sum(item["gib"] for item in row["plan"]["estimate"]["memory"])
    assert planned == pytest.approx(expected(row).total / GIB, abs=0.01)


@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("NVIDIA A100-SXM4-80GB", 79),
        ("NVIDIA A100-PCIE-40GB", 39),
        ("NVIDIA H100 80GB HBM3", 79),
        ("NVIDIA H100 NVL", 93),
        ("NVIDIA H200", 140),
        ("NVIDIA L40S", 44),
        ("NVIDIA L4", 22),
        ("NVIDIA GeForce RTX 4090", 23),
    ],
)
def test_names_as_the_driver_writes_them_are_known(name: str, memory: int) -> None:
    gpu = known_gpu(name)
    assert gpu is not None
    assert gpu.memory_gib == memory


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_gpus_are_detected_and_visibility_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = "0, GPU-a, NVIDIA H100 80GB HBM3, 81559\\n1, GPU-b, NVIDIA H100 80GB HBM3, 81559"
    fake_nvidia_smi(tmp_path, monkeypatch, f'printf "{rows}\\n"')
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = detect()
    assert (found.device, found.devices, found.memory_gib, found.tflops) == ("cuda", 2, 79.6, 989)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-b")
    assert detect().devices == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert detect().device == "cpu"


def test_a_driver_that_fails_means_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, "echo no driver >&2; exit 9")
    assert detect().device == "cpu"


def test_a_request_completes_the_hardware() -> None:
    assert from_request(HardwareRequest(), CPU) == CPU
    named = from_request(HardwareRequest(name="H100", devices=4), CPU)
    assert (named.device, named.devices, named.memory_gib, named.bandwidth_gbs) == ("cuda", 4, 79, 3350)
    one_thread = from_request(HardwareRequest(cpu_threads=1), CPU)
    assert (one_thread.cpu_threads, one_thread.tflops) == (1, 0.1)
    assert from_request(HardwareRequest(device="cpu", memory_gib=4), named).memory_gib == 4
    with pytest.raises(InvalidPlan, match="one training process"):
        from_request(HardwareRequest(device="cpu", devices=2), CPU)
    with pytest.raises(InvalidPlan, match="memory_gib"):
        from_request(HardwareRequest(device="cuda"), CPU)
