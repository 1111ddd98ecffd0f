"""A mutant of the loss that a stage uses is caught by the check that the stage passes, on the same rollouts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import losses_mutants as mutants
import pytest
from losses_checks import bridge_batch, bridge_step, bridge_trainer, gate, grpo_batch, grpo_step, grpo_trainer
from losses_reference import Grpo
from losses_samples import EIGHT, GROUP, GROUPS, LONGEST, off_policy

TAU = 0.6
SETTINGS = Grpo(GROUP, tau=TAU, beta=0.3, longest=LONGEST)
BRIDGES = ["warmup", "opd"]
CLIPPED = off_policy(GROUPS)


@pytest.fixture(scope="module")
def bridges(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    return cache(lambda name: bridge_trainer(tmp_path_factory.mktemp("job") / "job", name, EIGHT, TAU))


@pytest.fixture(scope="module")
def grpo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return grpo_trainer(tmp_path_factory.mktemp("job") / "job", GROUPS, SETTINGS)


@pytest.mark.parametrize("mutant", mutants.BRIDGE)
@pytest.mark.parametrize("name", BRIDGES)
def test_of_a_bridge(bridges: Callable[[str], Any], name: str, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = bridges(name)
    assert bridge_batch(trainer, name, EIGHT, TAU) == []
    mutants.BRIDGE[mutant](monkeypatch, trainer)
    assert bridge_batch(trainer, name, EIGHT, TAU) != []


@pytest.mark.parametrize("mutant", mutants.GRPO)
def test_of_grpo(grpo: Any, mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert grpo_batch(grpo, CLIPPED, SETTINGS, "moved") == []
    mutants.GRPO[mutant](monkeypatch, grpo)
    assert grpo_batch(grpo, CLIPPED, SETTINGS, "moved") != []


@pytest.mark.parametrize(("name", "mutant"), [
    ("warmup", "the warmup's direction"),
    ("opd", "OPD's direction"),
    ("warmup", "the plan's temperature is lost"),
    ("opd", "the plan's temperature is lost"),
])  # fmt: skip
def test_of_a_bridges_stage(name: str, mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutants.BRIDGE_STAGE[mutant](monkeypatch, None)
    assert bridge_batch(bridge_trainer(tmp_path / "job", name, EIGHT, TAU), name, EIGHT, TAU) != []


@pytest.mark.parametrize("mutant", mutants.GRPO_STAGE)
def test_of_a_grpo_stage(mutant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutants.GRPO_STAGE[mutant](monkeypatch, None)
    assert grpo_batch(grpo_trainer(tmp_path / "job", GROUPS, SETTINGS), CLIPPED, SETTINGS, "moved") != []


@pytest.mark.parametrize("name", BRIDGES)
def test_of_a_bridges_accumulation(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen in micro-batches of one sequence, and in no single batch."""
    mutants.loss_function(mutants.micro_batch_mean)(monkeypatch, None)
    assert bridge_step(tmp_path / "job", name, EIGHT, batch=1) != []


def test_of_grpos_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutants.GRPO_ACCUMULATION(monkeypatch, None)
    settings = replace(SETTINGS, beta=0.0)
    assert grpo_step(tmp_path / "whole", GROUPS, settings, batch=8) == []
    assert grpo_step(tmp_path / "parts", GROUPS, settings, batch=1) != []


@pytest.mark.parametrize("mutant", mutants.GATE)
def test_of_gate_c2(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gate(EIGHT, TAU) == []
    mutants.GATE[mutant](monkeypatch, None)
    assert gate(EIGHT, TAU) != []
