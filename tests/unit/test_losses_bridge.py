"""Forward KL as the warmup trains it and reverse KL as OPD does, against the reference: value and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from losses_checks import bridge_batch, bridge_step, bridge_trainer, rows_of
from losses_reference import Sample, kl, mismatches, outcome
from losses_replay import one_batch, samples_of
from losses_samples import EIGHT, EOS, LONGEST, rollouts
from losses_stages import exact
from trl.kernels import chunked_divergence

Build = Callable[[str, float], Any]
STAGES = ["warmup", "opd"]


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """One trainer for each stage and temperature: a check leaves nothing behind in it."""
    return cache(lambda name, tau: bridge_trainer(tmp_path_factory.mktemp("job") / "job", name, EIGHT, tau))


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("name", STAGES)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples=rollouts)
def test_any_batch_has_the_loss_and_gradient_of_the_formula(
    trainers: Build, name: str, tau: float, samples: list[Sample]
) -> None:
    assert bridge_batch(trainers(name, tau), name, samples, tau) == []


@pytest.mark.parametrize(("tokens", "entries"), [(4096, 7), (3, 32768), (1, 101), (5, 261), (5, 262)])
@pytest.mark.parametrize("name", STAGES)
def test_the_size_of_a_tile_changes_nothing(
    trainers: Build, name: str, tokens: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiles of tokens by vocabulary entries, 262 of which there are."""
    monkeypatch.setattr(chunked_divergence, "TOKEN_CHUNK_SIZE", tokens)
    monkeypatch.setattr(chunked_divergence, "VOCAB_CHUNK_SIZE", entries)
    assert bridge_batch(trainers(name, 0.6), name, EIGHT, 0.6) == []


@pytest.mark.parametrize("batch", [8, 2, 1])
@pytest.mark.parametrize("name", STAGES)
def test_accumulation_changes_nothing(name: str, batch: int, tmp_path: Path) -> None:
    """Token-weighted over the whole step: micro-batches of unlike length do not count alike."""
    assert bridge_step(tmp_path / "job", name, EIGHT, batch, tau=0.7) == []


@pytest.mark.parametrize("name", STAGES)
def test_the_teacher_gets_no_gradient(trainers: Build, name: str) -> None:
    trainer = trainers(name, 1.0)
    assert bridge_batch(trainer, name, EIGHT, 1.0) == []
    assert all(parameter.grad is None for parameter in trainer.teacher_model.parameters())


def test_opd_has_no_gradient_through_what_it_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn without a graph, and the gradient is the one with the drawn tokens as constants: no score-function term."""
    trainer = bridge_trainer(tmp_path / "job", "opd", EIGHT)
    del trainer._generate_single_turn  # from here on the trainer draws for itself
    generate, compute = trainer.model.generate, trainer._compute_loss
    graphs, batches = [], []

    def drawn(**arguments: Any) -> torch.Tensor:
        ids: torch.Tensor = generate(**arguments)
        graphs.append((torch.is_grad_enabled(), ids.requires_grad, ids.is_floating_point()))
        return ids

    def kept(student: Any, inputs: dict[str, Any], count: Any) -> Any:
        batches.append(inputs)
        return compute(student, inputs, count)

    monkeypatch.setattr(trainer.model, "generate", drawn)
    monkeypatch.setattr(trainer, "_compute_loss", kept)
    got = one_batch(trainer, rows_of(EIGHT))
    assert graphs == [(False, False, False)]
    (inputs,) = batches
    assert not any(value.requires_grad for value in inputs.values())
    drew = samples_of(inputs)
    assert {sample.prompt for sample in drew} == {sample.prompt for sample in EIGHT}
    assert all(0 < len(s.completion) <= LONGEST and EOS not in s.completion[:-1] for s in drew)
    wanted = kl(exact("student"), exact("teacher"), list(drew), "reverse", 1.0)
    assert mismatches(got, outcome(wanted, exact("student"))) == []
