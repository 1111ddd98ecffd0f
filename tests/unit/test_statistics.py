"""avg@k, pass@k and the paired test: against their definitions, and coverage where an interval is promised."""

from __future__ import annotations

import random
from itertools import combinations
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d.evaluate.statistics import avg_at_k, paired_gain, pass_at_k

GRADES = st.integers(1, 6).flatmap(
    lambda k: st.lists(st.lists(st.sampled_from([0.0, 1.0]), min_size=k, max_size=k), min_size=1, max_size=30)
)


@given(GRADES)
def test_avg_at_k_is_the_mean_inside_its_interval(rewards: list[list[float]]) -> None:
    got = avg_at_k(rewards)
    assert got.mean == pytest.approx(fmean(reward for one in rewards for reward in one))
    assert 0.0 <= got.low <= got.mean <= got.high <= 1.0
    assert got.high - got.low > 0, "no finite sample makes us certain"


@given(GRADES, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(rewards: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(rewards[0])))
    expected = fmean(fmean(max(subset) for subset in combinations(one, k)) for one in rewards)
    assert pass_at_k(rewards, k).mean == pytest.approx(expected)


def test_pass_at_k_needs_k_completions() -> None:
    with pytest.raises(ValueError, match="at least 3"):
        pass_at_k([[1.0, 0.0]], 3)


@pytest.mark.parametrize(("accuracy", "spread"), [(0.5, 0.0), (0.5, 0.45), (0.9, 0.1), (0.02, 0.02)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(accuracy: float, spread: float) -> None:
    """Problems differ in difficulty (`spread`), so their completions hang together."""
    generator = random.Random(1)
    runs, covered = 400, 0
    for _ in range(runs):
        chances = [accuracy + generator.choice([-spread, spread]) for _ in range(80)]
        rewards = [[float(generator.random() < p) for _ in range(4)] for p in chances]
        got = avg_at_k(rewards)
        covered += got.low <= accuracy <= got.high
    assert covered / runs > 0.92


def test_more_completions_of_the_same_problems_do_not_feign_certainty() -> None:
    rewards = [[float(i % 2)] * 64 for i in range(50)]
    got = avg_at_k(rewards)
    single = avg_at_k([[float(i % 2)] for i in range(50)])
    assert got.high - got.low == pytest.approx(single.high - single.low, rel=0.05)


def test_a_gain_on_every_problem_is_seen_and_none_is_not() -> None:
    before = [0.25, 0.5, 0.0, 0.25] * 16
    after = [value + 0.25 for value in before]
    assert paired_gain(before, after, confidence=0.95, seed=0).low == pytest.approx(0.25)
    same = paired_gain(before, before, confidence=0.95, seed=0)
    assert (same.low, same.mean, same.high) == (0.0, 0.0, 0.0)


def test_the_paired_test_is_seldom_wrong_when_nothing_changed() -> None:
    generator = random.Random(2)
    false_alarms = 0
    for run in range(200):
        draw = [[fmean(float(generator.random() < 0.3) for _ in range(4)) for _ in range(60)] for _ in range(2)]
        false_alarms += paired_gain(*draw, confidence=0.95, seed=run, resamples=400).low > 0
    assert false_alarms / 200 < 0.10
