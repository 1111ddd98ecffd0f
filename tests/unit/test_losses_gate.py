"""What gate C2 measures, against the reference: both KL directions, entropy, top tokens, in chunks of any size."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from losses_checks import gate, wanted_gate
from losses_reference import Sample
from losses_samples import EIGHT, rollouts

from s2d.evaluate import kl


@pytest.mark.parametrize("tau", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("teacher", ["near", "teacher"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(samples=rollouts)
def test_any_rollouts_are_measured_as_the_formulas_say(teacher: str, tau: float, samples: list[Sample]) -> None:
    assert gate(samples, tau, teacher) == []


@pytest.mark.parametrize("chunk", [1, 5, 24])
def test_the_size_of_a_chunk_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl, "CHUNK", chunk)
    assert gate(EIGHT, 0.6) == []


def test_the_models_agree_on_some_top_tokens_and_not_on_all() -> None:
    """Otherwise the agreement above would be tested on nothing."""
    assert 0.1 < wanted_gate(EIGHT, 1.0, "near")["top_token_agreement"] < 0.9


def test_a_student_that_is_its_teacher_is_at_no_distance() -> None:
    assert gate(EIGHT, 1.0, "student") == []
    assert wanted_gate(EIGHT, 1.0, "student")["top_token_agreement"] == 1.0
