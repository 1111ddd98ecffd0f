"""GRPO as its stages train it, against the reference: value and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from losses_checks import grpo_batch, grpo_step, grpo_trainer
from losses_reference import Grpo, Sample
from losses_samples import GROUP, GROUPS, LONGEST, groups, off_policy
from trl.kernels import chunked_logprob
from trl.trainer import utils

Build = Callable[[Grpo], Any]
PLAIN = Grpo(GROUP, longest=LONGEST)
SETTINGS = {
    "plan's default": PLAIN,
    "temperature": replace(PLAIN, tau=0.6),
    "sequence mean, batch std": replace(PLAIN, aggregation="grpo", scale="batch", tau=1.7),
    "dr_grpo, no std": replace(PLAIN, aggregation="dr_grpo", scale="none"),
    "symmetric clip": replace(PLAIN, low=0.28, high=0.28),
    "reference KL": replace(PLAIN, beta=0.3, tau=0.6),
    "reference KL, dr_grpo": replace(PLAIN, beta=0.04, aggregation="dr_grpo", scale="batch"),
    "reference KL, sequence mean": replace(PLAIN, beta=1.0, aggregation="grpo", scale="none"),
}


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> Build:
    return cache(lambda wanted: grpo_trainer(tmp_path_factory.mktemp("job") / "job", GROUPS, wanted))


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples=groups())
def test_any_batch_has_the_loss_and_gradient_of_the_formula(trainers: Build, name: str, samples: list[Sample]) -> None:
    """On-policy and clipped, the policy away from where it started and thus from the reference model."""
    assert grpo_batch(trainers(SETTINGS[name]), samples, SETTINGS[name], policy="moved") == []


@pytest.mark.parametrize("name", ["plan's default", "reference KL"])
def test_a_stage_starts_at_its_reference_model(trainers: Build, name: str) -> None:
    assert grpo_batch(trainers(SETTINGS[name]), GROUPS, SETTINGS[name]) == []


def test_a_group_whose_rewards_are_equal_has_no_gradient(trainers: Build) -> None:
    equal = [replace(sample, reward=1.0) for sample in GROUPS]
    assert grpo_batch(trainers(PLAIN), equal, PLAIN) == []
    assert not any(parameter.grad.any() for parameter in trainers(PLAIN).model.parameters())


@pytest.mark.parametrize(("tokens", "entries"), [(4096, 7), (3, 32768), (5, 261), (5, 262)])
def test_the_size_of_a_tile_changes_nothing(
    trainers: Build, tokens: int, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_logprob, "TOKEN_CHUNK_SIZE", tokens)
    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", entries)
    chosen = SETTINGS["reference KL"]
    assert grpo_batch(trainers(chosen), off_policy(GROUPS), chosen, policy="moved") == []


@pytest.mark.parametrize("batch", [8, 4, 1])
@pytest.mark.parametrize("name", ["plan's default", "sequence mean, batch std", "dr_grpo, no std"])
def test_accumulation_changes_nothing(name: str, batch: int, tmp_path: Path) -> None:
    """With micro-batches smaller than a group too: advantages are those of the whole step's groups."""
    assert grpo_step(tmp_path / "job", GROUPS, SETTINGS[name], batch) == []
