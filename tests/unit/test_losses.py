"""The losses as the stages use them, against references in float64 written from the formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Qwen3Config, Qwen3ForCausalLM
from trl import DistillationConfig

from s2d.demo.tokenizer import build_tokenizer
from s2d.evaluate.kl import measure_kl
from s2d.plan.document import Sampling
from s2d.rollouts.transformers_engine import TransformersEngine
from s2d.stages.distillation import FORWARD, REVERSE, BridgeTrainer
from s2d.stages.warmup import WarmupTrainer

TOKENIZER = build_tokenizer(256)
PROMPTS = ["4*9+3=", "1+1=", "7*8*9+2*3=", "0+5="]
COMPLETIONS = [";6;9\\boxed{9}", "\\boxed{2}", ";6;4;6\\boxed{1}", ";"]


def model(seed: int, hidden: int) -> Qwen3ForCausalLM:
    """Random, with weights large enough that its distributions are far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER), hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, initializer_range=0.3,
        bos_token_id=None, eos_token_id=TOKENIZER.eos_token_id, pad_token_id=TOKENIZER.pad_token_id,
    )  # fmt: skip
    return Qwen3ForCausalLM(config).eval()


def reference_kl(
    student: Any, teacher: Any, pairs: list[tuple[list[int], list[int]]], reverse: bool, tau: float
) -> Any:
    """Mean over completion tokens of KL(T ‖ S), or of KL(S ‖ T): one unpadded sequence at a time, in float64."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for prompt, completion in pairs:
        ids = torch.tensor([prompt + completion])
        # The logits that predict completion token t stand one place before it.
        s, t = (
            torch.log_softmax(m(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / tau, -1)
            for m in (student, teacher)
        )
        p, q = (s, t) if reverse else (t, s)
        total = total + (p.exp() * (p - q)).sum()
        tokens += len(completion)
    return total / tokens


def conversation(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def prompt_ids(text: str) -> list[int]:
    return TOKENIZER.apply_chat_template(conversation(text), add_generation_prompt=True, return_dict=True)["input_ids"]


def trainer(kind: type[BridgeTrainer], beta: float, folder: Path, tau: float, batch: int, steps: int) -> BridgeTrainer:
    completions = [TOKENIZER(text)["input_ids"] for text in COMPLETIONS]
    rows = {"prompt": [conversation(text) for text in PROMPTS], "completion_ids": completions}
    args = DistillationConfig(
        output_dir=str(folder), beta=beta, temperature=tau, max_completion_length=12, use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", per_device_train_batch_size=batch,
        gradient_accumulation_steps=steps, shuffle_dataset=False, max_steps=1, seed=3,
    )  # fmt: skip
    return kind(
        model=model(0, 32), teacher_model=model(1, 48), args=args, train_dataset=Dataset.from_dict(rows),
        processing_class=TOKENIZER,
    )  # fmt: skip


def trained_pairs(inputs: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """Prompt and completion of each row of a prepared batch, padding removed."""
    masks = inputs["prompt_mask"].bool(), inputs["completion_mask"].bool()
    rows = zip(inputs["prompt_ids"], inputs["completion_ids"], *masks, strict=True)
    return [(p[mp].tolist(), c[mc].tolist()) for p, c, mp, mc in rows]


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize(("kind", "beta"), [(WarmupTrainer, FORWARD), (BridgeTrainer, REVERSE)])
def test_the_bridges_loss_and_gradient_equal_the_formula(
    kind: type[BridgeTrainer], beta: float, tau: float, tmp_path: Path
) -> None:
    one = trainer(kind, beta, tmp_path, tau, batch=4, steps=1)
    one.model.train()
    inputs = one._prepare_inputs(list(one.train_dataset))
    loss = one.compute_loss(one.model, inputs)
    loss.backward()
    got = {name: p.grad.clone() for name, p in one.model.named_parameters()}
    assert all(p.grad is None for p in one.teacher_model.parameters())

    pairs = trained_pairs(inputs)
    one.model.zero_grad()
    wanted = reference_kl(one.model, one.teacher_model, pairs, reverse=beta == REVERSE, tau=tau)
    wanted.backward()
    assert wanted.item() > 0.05, "the two models must differ for this to test anything"
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    for name, parameter in one.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=2e-3, atol=2e-5, msg=name)

    for name, reverse in (("forward_kl", False), ("reverse_kl", True)):
        with torch.no_grad():
            expected = reference_kl(one.model, one.teacher_model, pairs, reverse=reverse, tau=tau)
        assert one._metrics["train"][name] == [pytest.approx(expected.item(), rel=1e-4)]


def test_the_warmup_trains_on_the_stored_completions(tmp_path: Path) -> None:
    one = trainer(WarmupTrainer, FORWARD, tmp_path, 1.0, batch=4, steps=1)
    one.model.train()
    pairs = trained_pairs(one._prepare_inputs(list(one.train_dataset)))
    stored = {tuple(prompt_ids(p)): TOKENIZER(c)["input_ids"] for p, c in zip(PROMPTS, COMPLETIONS, strict=True)}
    assert {tuple(prompt): completion for prompt, completion in pairs} == stored


def test_opd_trains_on_what_the_student_drew(tmp_path: Path) -> None:
    one = trainer(BridgeTrainer, REVERSE, tmp_path, 1.0, batch=4, steps=1)
    one.model.train()
    pairs = trained_pairs(one._prepare_inputs(list(one.train_dataset)))
    assert {tuple(prompt) for prompt, _ in pairs} == {tuple(prompt_ids(text)) for text in PROMPTS}
    assert all(len(completion) <= 12 for _, completion in pairs)
    stored = [TOKENIZER(text)["input_ids"] for text in COMPLETIONS]
    assert not any(completion in stored for _, completion in pairs)


def test_accumulating_four_micro_batches_equals_one_batch(tmp_path: Path) -> None:
    """Token-weighted, so micro-batches of unlike length must not count alike."""
    gradients = []
    for batch, steps in ((4, 1), (1, 4)):
        one = trainer(WarmupTrainer, FORWARD, tmp_path / str(steps), 1.0, batch=batch, steps=steps)
        one.model.train()
        one.current_gradient_accumulation_steps = steps
        for _ in range(steps):
            one.training_step(one.model, list(one.train_dataset), None)
        gradients.append({name: p.grad.clone() for name, p in one.model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6, msg=name)


def test_gate_c2_measures_both_directions_on_student_rollouts() -> None:
    student, teacher = model(0, 32), model(1, 48)
    prompts = [prompt_ids(text) for text in PROMPTS]
    sampling = Sampling()
    drawn = TransformersEngine(student, TOKENIZER, 2).generate(
        prompts, samples=1, sampling=sampling, max_tokens=10, seed=5
    )
    got = measure_kl(student, teacher, TOKENIZER, prompts, sampling=sampling, max_tokens=10, batch_size=2, seed=5)
    pairs = [(prompt, group[0].ids) for prompt, group in zip(prompts, drawn, strict=True)]
    with torch.no_grad():
        assert got.reverse_kl == pytest.approx(reference_kl(student, teacher, pairs, True, 1.0).item(), rel=1e-4)
        assert got.forward_kl == pytest.approx(reference_kl(student, teacher, pairs, False, 1.0).item(), rel=1e-4)
    assert got.tokens == sum(len(completion) for _, completion in pairs)
    same = measure_kl(student, student, TOKENIZER, prompts, sampling=sampling, max_tokens=10, batch_size=2, seed=5)
    assert (same.reverse_kl, same.top_token_agreement) == (pytest.approx(0.0, abs=1e-6), 1.0)


def test_drawing_rollouts_leaves_the_random_state_of_training_alone() -> None:
    student = model(0, 32)
    engine = TransformersEngine(student, TOKENIZER, 4)
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    first = engine.generate([prompt_ids("1+1=")], samples=3, sampling=Sampling(), max_tokens=6, seed=1)
    torch.testing.assert_close(torch.rand(3), wanted)
    assert first == engine.generate([prompt_ids("1+1=")], samples=3, sampling=Sampling(), max_tokens=6, seed=1)
    assert first != engine.generate([prompt_ids("1+1=")], samples=3, sampling=Sampling(), max_tokens=6, seed=2)
