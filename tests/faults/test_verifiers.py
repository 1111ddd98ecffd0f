"""Answers that are written to hang, break or fool the verifier, and a verifier that is killed at its work (row 16).

Graded as a training step grades them: by the reward function of GRPO, over a pool of real processes, whose metric is
what a job's report shows.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from benchmarks.rig import until
from s2d.stages.rewards import VerifierReward
from s2d.verifiers import Grade, GradingPool, VerifierSpec

pytestmark = pytest.mark.fault(16)

DEADLINE_S = 2.0
#: For everything that one test waits for; a pool that hung would wait for ever.
GENEROUS_S = 200.0
TOWER = r"\boxed{9^{9^{9^{9}}}}"
FINE = r"\boxed{146/2}"

#: Longer than anyone waits.
ENDLESS = (TOWER, r"\boxed{7^{7^{7^{7^{7}}}}}", r"\boxed{((9!)!)!}")
#: None of them may be worth anything against the label 73.
HOSTILE: dict[str, str] = {
    **{f"endless {text}": text for text in ENDLESS},
    "many brackets": r"\boxed{" + "(" * 500 + "72" + ")" * 500 + "}",
    "deep fractions": r"\boxed{" + r"\frac{1}{" * 100 + "2" + "}" * 100 + "}",
    "deep braces": r"\boxed{" + "{" * 500 + "72" + "}" * 500 + "}",
    "unclosed braces": "{" * 100_000,
    "unclosed boxes": "\\boxed{" * 15_000,
    "100k characters of LaTeX": r"The answer is $" + r"\frac{1}{2} + " * 8_000 + "1$",
    "100k characters in a box": r"\boxed{" + r"\sqrt{2}+" * 11_000 + "1}",
    "a number of 100k digits": r"\boxed{" + "9" * 100_000 + "}",
    "null bytes": "\0" * 100_000,
    "a null byte in the number": "\\boxed{7\x003}",
    "half of a surrogate pair": "\\boxed{7\ud8003}",
    "fullwidth digits": "\\boxed{７３}",
    "Arabic digits": "\\boxed{٧٣}",
    "mathematical digits": "\\boxed{\U0001d7d5\U0001d7d1}",
    "circled digits": "\\boxed{⑦③}",
    "a letter like a three": "\\boxed{7З}",
    "right to left": "\\boxed{\u202e37}",
    "nothing": "",
}


@pytest.fixture
def before() -> set[int]:
    return set(workers())


def workers() -> dict[int, psutil.Process]:
    """The living verifier processes of this one."""
    found = {}
    for one in psutil.Process().children():
        if one.status() != psutil.STATUS_ZOMBIE and "s2d.verifiers.worker" in one.cmdline():
            found[one.pid] = one
    return found


def elsewhere(call: Callable[[], Any]) -> Any:
    """What `call` returns in a thread that is not the main one, where no alarm can ring."""
    return ThreadPoolExecutor(1).submit(call).result(GENEROUS_S)


def test_hostile_answers_earn_nothing_and_are_counted_off_the_main_thread(before: set[int]) -> None:
    """Each between two right answers, as in a group of rollouts: those lose nothing by their neighbour."""
    completions = [part for text in HOSTILE.values() for part in (f"{FINE} % {len(text)}", text, FINE)]
    metrics: list[tuple[str, float]] = []
    with GradingPool(VerifierSpec(name="math"), workers=2, deadline_s=DEADLINE_S) as pool:
        reward = VerifierReward(pool)
        rewards = elsewhere(lambda: reward(completions, ["73"] * len(completions), lambda *one: metrics.append(one)))
        assert dict(zip(HOSTILE, rewards[1::3], strict=True)) == dict.fromkeys(HOSTILE, 0.0)
        assert rewards[::3] == rewards[2::3] == [1.0] * len(HOSTILE)
        assert metrics == [("verifier_timeouts", pool.timeouts)]
        assert len(ENDLESS) <= pool.timeouts < len(HOSTILE)
        assert pool.crashes == 0
        # A group that agrees on one tower is looked at once, and every rollout of it counts.
        counted = pool.timeouts
        assert elsewhere(lambda: pool.grade([(TOWER, "73")] * 8)) == [Grade(0.0, "timeout")] * 8
        assert pool.timeouts == counted + 8
    assert set(workers()) <= before


def test_a_verifier_killed_while_it_grades_costs_that_answer_alone(before: set[int]) -> None:
    right, wrong = Grade(1.0, "correct"), Grade(0.0, "wrong")
    with GradingPool(VerifierSpec(name="math"), deadline_s=GENEROUS_S) as pool:
        assert pool.grade([(FINE, "73")]) == [right]
        (victim,) = [process for pid, process in workers().items() if pid not in before]
        idle = sum(victim.cpu_times()[:2])
        pairs = [(rf"\boxed{{{n}}}", "7") for n in range(6, 9)] + [(TOWER, "73"), (FINE, "73"), (r"\boxed{1}", "73")]
        with ThreadPoolExecutor(1) as thread:
            grades = thread.submit(pool.grade, pairs)
            # Nothing else in these pairs takes so much: it is at the tower.
            until("it grades", lambda: sum(victim.cpu_times()[:2]) > idle + 0.5, GENEROUS_S)
            victim.kill()
            assert grades.result(GENEROUS_S) == [wrong, right, wrong, Grade(0.0, "crash"), right, wrong]
        assert (pool.graded, pool.crashes, pool.timeouts, pool.errors) == (7, 1, 0, 0)
        assert victim.pid not in workers()
        assert pool.grade([(FINE, "73")]) == [right]
    assert set(workers()) <= before


@pytest.mark.parametrize(
    ("name", "label", "fine"),
    [
        ("exact", "73", r"\boxed{73}"),
        ("numeric", "73", r"\boxed{73.0}"),
        ("choice", "C", "The answer is (C)"),
        ("path", "ab.bc>ac", r"\boxed{abc}"),
    ],
)
def test_the_other_verifiers_neither_hang_nor_are_fooled(name: Any, label: str, fine: str) -> None:
    with GradingPool(VerifierSpec(name=name), deadline_s=GENEROUS_S) as pool:
        grades = elsewhere(lambda: pool.grade([(text, label) for text in [*HOSTILE.values(), fine]]))
        assert [grade.reward for grade in grades] == [0.0] * len(HOSTILE) + [1.0]
        assert (pool.timeouts, pool.crashes, pool.errors) == (0, 0, 0)
