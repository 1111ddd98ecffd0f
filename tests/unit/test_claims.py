"""The judgement over seeds that the paper's table rests on."""

from __future__ import annotations

import math
import random
from statistics import stdev

import pytest

from benchmarks.claims import CLAIMS, COMPUTE_CLAIMS, MARGIN, T_975, Claim, interval, judge

ABOVE = Claim("x", "a > b", (("a", 1.0),), (("b", 1.0),))
AT_LEAST = Claim("x", "a >= b", (("a", 1.0),), (("b", 1.0),), ">=")


def seeds(*differences: float) -> list[dict[str, float]]:
    return [{"a": 0.5 + one, "b": 0.5} for one in differences]


def test_the_interval_is_students() -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert found.mean == 3.0
    # s = sqrt(2.5), t(0.975, 4) = 2.776
    assert found.high == pytest.approx(3.0 + 2.776 * math.sqrt(2.5 / 5))
    assert T_975[0] == 12.706


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = random.Random(0)
    covered = 0
    for _ in range(2000):
        found = interval([rng.gauss(0.3, 0.1) for _ in range(5)])
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3 <= found.high
    assert 0.93 < covered / 2000 < 0.97


@pytest.mark.parametrize(
    ("claim", "differences", "verdict"),
    [
        (ABOVE, (0.30, 0.31, 0.32), "held"),
        (ABOVE, (0.30, -0.20, 0.05), "not shown"),
        (ABOVE, (-0.30, -0.31, -0.32), "contradicted"),
        (ABOVE, (0.3,), "one seed: no interval"),
        (AT_LEAST, (-0.002, 0.001, 0.0), "held"),
        (AT_LEAST, (-0.5 * MARGIN, -2 * MARGIN, -MARGIN), "not shown"),
        (AT_LEAST, (-5 * MARGIN, -5.1 * MARGIN, -4.9 * MARGIN), "contradicted"),
    ],
)
def test_verdicts(claim: Claim, differences: tuple[float, ...], verdict: str) -> None:
    assert judge(claim, seeds(*differences)).verdict == verdict


def test_differences_are_paired_within_a_seed() -> None:
    """Seeds that differ by much more than the arms do still show the difference."""
    runs = [{"a": base + 0.02, "b": base} for base in (0.2, 0.5, 0.9)]
    assert judge(ABOVE, runs).verdict == "held"


#: A made-up table in which every claim of the paper is true.
PAPER = {
    "base_student": 0.10, "raw_teacher_bridge": 0.20, "raw_teacher_bridge_compute": 0.21, "direct_grpo": 0.30,
    "direct_grpo_compute": 0.32, "cold_student_rl": 0.13, "warmup_only": 0.60, "warmup_only_compute": 0.61,
    "opd_only": 0.62, "opd_only_compute": 0.63, "labeled_bridge": 0.64, "opd_student": 0.70, "replay": 0.72,
    "replay_labels": 0.74, "rl_student": 0.80,
}  # fmt: skip
LESS = {
    "a1": "raw_teacher_bridge", "a2": "direct_grpo", "b1": "opd_only", "b2": "warmup_only", "c": "cold_student_rl",
    "d0": "opd_student", "d1": "replay", "d2": "replay_labels", "e": "raw_teacher_bridge", "f": "direct_grpo",
    "g": "labeled_bridge",
}  # fmt: skip


@pytest.mark.parametrize(("claim", "suffix"), [(c, "") for c in CLAIMS] + [(c, "_compute") for c in COMPUTE_CLAIMS])
def test_each_claim_points_the_way_the_paper_does(claim: Claim, suffix: str) -> None:
    """Positive where the paper is right, and smaller once the arm that should be worse is better."""
    said = claim.difference(PAPER)
    assert said > 0
    worse = LESS[claim.name] + suffix
    assert claim.difference({**PAPER, worse: PAPER[worse] + 0.05}) == pytest.approx(said - 0.05)


def test_stage_3_is_compared_by_its_gain() -> None:
    claim = next(one for one in CLAIMS if one.name == "c")
    means = {"rl_student": 0.95, "opd_student": 0.90, "cold_student_rl": 0.25, "base_student": 0.22}
    assert claim.difference(means) == pytest.approx(0.05 - 0.03)


def test_an_interval_is_never_too_narrow_for_many_seeds() -> None:
    values = [float(n) for n in range(40)]
    found = interval(values)
    assert found.high is not None
    assert found.high - found.mean > 2.022 * stdev(values) / math.sqrt(40), "t(0.975, 39)"


def test_claims_have_names_of_their_own() -> None:
    for claims in (CLAIMS, COMPUTE_CLAIMS):
        assert len({claim.name for claim in claims}) == len(claims)
