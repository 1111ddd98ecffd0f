"""The verifiers' processes that a service keeps: reused, few, and gone with it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from s2d.errors import StageFailure, Unavailable
from s2d.services.grading import Grading
from s2d.verifiers.base import VerifierSpec
from s2d.verifiers.pool import GradingPool

EXACT = VerifierSpec(name="exact")


@pytest.fixture
def grading() -> Iterator[Grading]:
    made = Grading(most=2)
    yield made
    made.close()


def numeric(tolerance: float) -> VerifierSpec:
    return VerifierSpec(name="numeric", options={"rel_tol": tolerance})


def children() -> set[int]:
    """Of this process itself: what other tests' services start meanwhile is theirs."""
    return {child.pid for child in psutil.Process().children()}


def test_the_same_verifier_is_started_once(grading: Grading) -> None:
    before = children()
    assert [grade.reward for grade in grading.grade(EXACT, [("4", "4"), ("5", "4")])] == [1.0, 0.0]
    mine = children() - before
    assert len(mine) == 1
    assert grading.grade(VerifierSpec(name="exact"), [("4", "4")])[0].outcome == "correct"
    assert children() - before == mine


def test_few_are_kept_and_the_one_in_use_is_not_ended(grading: Grading, monkeypatch: pytest.MonkeyPatch) -> None:
    before, entered, go_on = children(), threading.Event(), threading.Event()
    grade = GradingPool.grade

    def held(pool: GradingPool, pairs: Any) -> Any:
        if pairs == [("4", "4")]:
            entered.set()
            assert go_on.wait(20)
        return grade(pool, pairs)

    monkeypatch.setattr(GradingPool, "grade", held)
    found: list[Any] = []
    user = threading.Thread(target=lambda: found.extend(grading.grade(EXACT, [("4", "4")])))
    user.start()
    assert entered.wait(20)
    for number in range(1, 5):
        assert grading.grade(numeric(number / 100), [("1", "1")])[0].reward == 1.0
    go_on.set()
    user.join()
    assert found[0].reward == 1.0
    assert len(children() - before) <= 2


def test_a_verifier_that_broke_is_started_anew(grading: Grading, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise StageFailure("no process", code="verifier")

    with monkeypatch.context() as patched:
        patched.setattr(GradingPool, "_grade_unique", broken)
        with pytest.raises(Unavailable) as caught:
            grading.grade(EXACT, [("4", "4")])
    assert caught.value.code == "verifier_unavailable"
    assert grading.grade(EXACT, [("4", "4")])[0].reward == 1.0


def test_nothing_is_left_when_it_is_closed() -> None:
    before, made = children(), Grading()
    made.grade(EXACT, [("4", "4")])
    made.close()
    assert children() <= before
