"""Rates of this machine, from models with random weights that are made here.

Two tiny models of different depth give what a step costs beside its arithmetic, as almost all of their time is that;
a larger one gives FLOP/s (a training pass) and bytes/s (a decoding step of one sequence, which reads every weight for
one token). Each figure is the fastest of a few repetitions: what others take from the machine is not its own.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from s2d.plan.machine import Rates

REPETITIONS = 5
SHALLOW, DEEP = 2, 8
PROMPT, FEW, MANY = 16, 8, 40
#: Nothing is faster than this: a difference that noise made negative must not become an infinite rate.
LEAST_S = 1e-6


@dataclass(frozen=True)
class Large:
    """A model that keeps the device busy, and the training pass that it is asked for."""

    hidden: int
    layers: int
    vocabulary: int
    sequences: int
    tokens: int


LARGE = {"cpu": Large(512, 6, 8192, 4, 128), "cuda": Large(2048, 8, 32_768, 8, 512)}


def measure(device: str, threads: int) -> Rates:
    """`device` is cpu or cuda; `threads` are torch's, as the plan has them."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    size = LARGE[device]
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    shallow, deep = (_model(64, depth, 512, device, dtype) for depth in (SHALLOW, DEEP))
    decode_step, decode_layer = _split(*(_decode_s(model) for model in (shallow, deep)))
    micro_batch, micro_layer = _split(*(_pass_s(model, 2, 16) for model in (shallow, deep)))
    large = _model(size.hidden, size.layers, size.vocabulary, device, dtype)
    parameters = sum(weight.numel() for weight in large.parameters())
    reading = _decode_s(large) - decode_step - decode_layer * size.layers
    computing = _pass_s(large, size.sequences, size.tokens) - micro_batch - micro_layer * size.layers
    return Rates(
        flops=6.0 * parameters * size.sequences * size.tokens / max(LEAST_S, computing),
        bytes=parameters * dtype.itemsize / max(LEAST_S, reading),
        decode_step_s=decode_step,
        decode_layer_s=decode_layer,
        micro_batch_s=micro_batch,
        micro_layer_s=micro_layer,
        step_s=_step_s(shallow),
        start_s=_start_s(),
        load_bytes=parameters * dtype.itemsize / _load_s(large),
    )


def _model(hidden: int, layers: int, vocabulary: int, device: str, dtype: torch.dtype) -> PreTrainedModel:
    config = Qwen3Config(
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=3 * hidden,
        num_attention_heads=hidden // 32,
        num_key_value_heads=hidden // 64,
        head_dim=32,
        vocab_size=vocabulary,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).to(device=device, dtype=dtype)


def _split(shallow_s: float, deep_s: float) -> tuple[float, float]:
    """What a step costs whatever the model, and for each layer."""
    layer = max(0.0, (deep_s - shallow_s) / (DEEP - SHALLOW))
    return max(0.0, shallow_s - SHALLOW * layer), layer


def _decode_s(model: PreTrainedModel) -> float:
    """Seconds of one decoding step of one sequence."""
    prompt = torch.ones(1, PROMPT, dtype=torch.long, device=model.device)

    def draw(tokens: int) -> Callable[[], object]:
        config = GenerationConfig(
            min_new_tokens=tokens, max_new_tokens=tokens, do_sample=True, pad_token_id=0, eos_token_id=1
        )
        return lambda: model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)

    model.eval()
    with torch.no_grad():
        return max(LEAST_S, (_seconds(draw(MANY), model) - _seconds(draw(FEW), model)) / (MANY - FEW))


def _pass_s(model: PreTrainedModel, sequences: int, tokens: int) -> float:
    """Seconds of a forward and backward pass."""
    ids = torch.randint(2, model.config.vocab_size, (sequences, tokens), device=model.device)
    model.train()

    def work() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        model.zero_grad()

    return _seconds(work, model)


def _step_s(model: PreTrainedModel) -> float:
    """Seconds of an optimizer step, its pass included: the model is too small for its arithmetic to count."""
    ids = torch.ones(1, PROMPT, dtype=torch.long, device=model.device)
    optimizer = torch.optim.AdamW(model.parameters())

    def work() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return _seconds(work, model)


def _load_s(model: PreTrainedModel) -> float:
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return _seconds(lambda: Qwen3ForCausalLM.from_pretrained(folder, dtype=model.dtype).to(model.device), model)


def _start_s() -> float:
    """Seconds until a process has what a training stage imports."""
    command = [sys.executable, "-c", "import s2d.stages.grpo, s2d.stages.opd"]
    began = time.perf_counter()
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    return time.perf_counter() - began


def _seconds(work: Callable[[], object], model: PreTrainedModel) -> float:
    """The fastest of some repetitions, after one that warms up."""
    times = []
    for _ in range(REPETITIONS + 1):
        began = time.perf_counter()
        work()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
