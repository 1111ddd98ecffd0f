"""A key's requests per minute: a burst of them at once, then evenly, never more than the minute's in the long run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2d.errors import TooManyRequests
from s2d.services import rates
from s2d.services.rates import Rates


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def allowed(of: Rates, key: str, per_min: int | None) -> bool:
    try:
        of.take(key, per_min)
    except TooManyRequests:
        return False
    return True


def test_a_burst_then_evenly() -> None:
    clock = Clock()
    limited = Rates(clock)
    assert [allowed(limited, "key", 3) for _ in range(4)] == [True, True, True, False]
    assert allowed(limited, "another", 3), "keys do not share"
    clock.now = 19.9
    assert not allowed(limited, "key", 3)
    clock.now = 20.1
    assert [allowed(limited, "key", 3) for _ in range(2)] == [True, False]


def test_without_a_limit_nothing_is_counted() -> None:
    assert all(allowed(Rates(), "key", None) for _ in range(1000))


@given(per_min=st.integers(1, 600), waits=st.lists(st.floats(0, 30), max_size=60))
def test_whoever_waits_as_told_is_served(per_min: int, waits: list[float]) -> None:
    clock = Clock()
    limited = Rates(clock)
    for served, wait in enumerate(waits, start=1):
        clock.now += wait
        try:
            limited.take("key", per_min)
        except TooManyRequests as refused:
            clock.now += refused.retry_after_s
            limited.take("key", per_min)
        assert served <= per_min + clock.now * per_min / 60 + 1e-3


def test_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_BUCKETS", 10)
    clock = Clock()
    limited = Rates(clock)
    for n in range(100):
        clock.now += 10
        limited.take(f"key {n}", 5)
    assert len(limited._buckets) <= 10 + 1
