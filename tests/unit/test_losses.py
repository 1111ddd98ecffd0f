"""What stands around the losses: the rollouts that each bridge trains on, the KLs it logs, and gate C2's own draws.

The losses themselves are in `test_losses_bridge.py`, `test_losses_grpo.py` and `test_losses_gate.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from losses_checks import bridge_batch, bridge_trainer, rows_of, wanted_gate
from losses_reference import Direction, Sample, kl
from losses_replay import samples_of
from losses_samples import EIGHT, LONGEST, TOKENIZER
from losses_stages import exact, models
from transformers import Qwen3ForCausalLM

from s2d.evaluate.kl import measure_kl
from s2d.plan.document import Sampling
from s2d.rollouts.transformers_engine import TransformersEngine

PROMPTS = [list(sample.prompt) for sample in EIGHT]
BOTH: tuple[Direction, ...] = ("forward", "reverse")


def student() -> Any:
    return Qwen3ForCausalLM.from_pretrained(models() / "student")


def prepared(trainer: Any) -> set[Sample]:
    """The rollouts of the step that the trainer makes of these rows."""
    trainer.model.train()
    return samples_of(trainer._prepare_inputs(rows_of(EIGHT)))


@pytest.mark.parametrize("tau", [1.0, 0.7])
@pytest.mark.parametrize("name", ["warmup", "opd"])
def test_a_bridge_logs_both_directions(name: str, tau: float, tmp_path: Path) -> None:
    trainer = bridge_trainer(tmp_path / "job", name, EIGHT, tau)
    assert bridge_batch(trainer, name, EIGHT, tau) == []
    for direction in BOTH:
        wanted = kl(exact("student"), exact("teacher"), EIGHT, direction, tau).item()
        assert wanted > 0.05, "the two models must differ for this to test anything"
        assert trainer._metrics["train"][f"{direction}_kl"] == [pytest.approx(wanted, rel=1e-4)]


def test_the_warmup_trains_on_the_stored_completions(tmp_path: Path) -> None:
    trainer = bridge_trainer(tmp_path / "job", "warmup", EIGHT)
    first = list(trainer.train_dataset)[: len(EIGHT)]
    stored = {(row["prompt"][-1]["content"], tuple(row["completion_ids"])) for row in first}
    assert stored == {(row["prompt"][-1]["content"], tuple(row["completion_ids"])) for row in rows_of(EIGHT)}
    assert prepared(trainer) == set(EIGHT)


def test_opd_trains_on_what_the_student_draws(tmp_path: Path) -> None:
    trainer = bridge_trainer(tmp_path / "job", "opd", EIGHT)
    del trainer._generate_single_turn  # from here on the trainer draws for itself
    drawn = prepared(trainer)
    assert {sample.prompt for sample in drawn} == {sample.prompt for sample in EIGHT}
    assert all(0 < len(sample.completion) <= LONGEST for sample in drawn)
    assert not drawn & set(EIGHT)


def test_gate_c2_measures_the_students_own_rollouts() -> None:
    sampling = Sampling()
    engine = TransformersEngine(student(), TOKENIZER, 2)
    drawn = engine.generate(PROMPTS, samples=1, sampling=sampling, max_tokens=10, seed=5)
    teacher = Qwen3ForCausalLM.from_pretrained(models() / "near")
    got = measure_kl(student(), teacher, TOKENIZER, PROMPTS, sampling=sampling, max_tokens=10, batch_size=2, seed=5)
    samples = [Sample(tuple(prompt), tuple(group[0].ids)) for prompt, group in zip(PROMPTS, drawn, strict=True)]
    wanted = wanted_gate(samples, 1.0, "near")
    assert {name: got.as_dict()[name] for name in wanted} == {
        name: pytest.approx(value, rel=1e-4) for name, value in wanted.items()
    }


def test_drawing_rollouts_leaves_the_random_state_of_training_alone() -> None:
    engine = TransformersEngine(student(), TOKENIZER, 4)
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    first = engine.generate(PROMPTS[:1], samples=3, sampling=Sampling(), max_tokens=6, seed=1)
    torch.testing.assert_close(torch.rand(3), wanted)
    assert first == engine.generate(PROMPTS[:1], samples=3, sampling=Sampling(), max_tokens=6, seed=1)
    assert first != engine.generate(PROMPTS[:1], samples=3, sampling=Sampling(), max_tokens=6, seed=2)
