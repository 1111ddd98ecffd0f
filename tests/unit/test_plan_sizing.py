"""Memory and time: the formulas against known numbers, and hardware from the request or from nvidia-smi."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from plan_pair import CPU, config, policy, write_model

from s2d.errors import InvalidPlan
from s2d.plan.document import Hardware, Lora
from s2d.plan.hardware import GIB, detect, from_request, known_gpu
from s2d.plan.models import ModelPolicy, read_model
from s2d.plan.request import HardwareRequest
from s2d.plan.sizing import Work, fit, kv_bytes, lora_parameters, state_gib, training_memory
from s2d.plan.timing import Generate, Lengths, Train, cost

NONE = ModelPolicy(allow_hub=False)
BIG, SMALL = read_model("Qwen/Qwen3-8B", NONE), read_model("Qwen/Qwen3-1.7B", NONE)
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
    work = Work(BIG, (), 64, 3072, generates=True)
    one = fit(work, GPU, (None, Lora()))
    assert one is not None
    assert one.lora == Lora()
    assert one.memory.high <= 80
    assert fit(work, GPU, (None,)) is None
    roomy = fit(work, GPU.model_copy(update={"memory_gib": 400}), (None, Lora()))
    assert roomy is not None
    assert roomy.lora is None


def test_memory_grows_with_what_needs_it() -> None:
    work = Work(SMALL, (BIG,), 64, 3072, generates=True)
    base = training_memory(work, GPU, None, 8, checkpoint=False)
    assert training_memory(work, GPU, None, 8, checkpoint=True).high < base.high
    assert training_memory(replace(work, frozen=()), GPU, None, 8, checkpoint=False).low < base.low - 15
    assert training_memory(work, GPU, None, 16, checkpoint=False).high > base.high
    assert base.low < base.high


def test_time_falls_with_devices_and_rises_with_work() -> None:
    lengths = Lengths(prompt=150, max_completion=2048)

    def high(steps: int, devices: int) -> float:
        hardware = GPU.model_copy(update={"devices": devices})
        generate = Generate(SMALL, steps * 64, 64 // devices, devices)
        return cost(hardware, lengths, (generate,), (Train(SMALL, steps, 64, 8, True, (BIG,)),)).seconds.high

    assert high(100, 8) < high(100, 1) < high(200, 1)


def test_the_cpu_range_holds_what_a_probe_measured(tmp_path: Path) -> None:
    """Student GRPO, 256 sequences a step, 13 + 14 tokens: 0.295 s a step in stock TRL, 0.105 s in a plain loop."""
    student = read_model(str(write_model(tmp_path / "m", config(48, 2, 4, 192, vocab_size=32))), policy(tmp_path))
    one_core = CPU.model_copy(update={"cpu_threads": 1, "tflops": 0.1})
    generate = Generate(student, 200 * 256, 256, 1)
    seconds = cost(one_core, Lengths(13, 14), (generate,), (Train(student, 200, 256, 256, False),)).seconds
    assert seconds.low < 200 * 0.295 < seconds.high


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
