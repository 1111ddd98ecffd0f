"""The pool under completions that hang, crash and lie, and under the death of its own process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from s2d.errors import StageFailure
from s2d.verifiers import Grade, GradingPool, VerifierSpec, process

SPEC = VerifierSpec(name="exact")
CORRECT, WRONG = Grade(1.0, "correct"), Grade(0.0, "wrong")

#: A worker whose verifier does what the completion tells it to.
FAULTY = """
import os, sys, time
from multiprocessing.connection import Connection
from s2d.verifiers.worker import belong_to_parent, serve

class Faulty:
    name = "faulty"
    def grade(self, completion, answer):
        if completion == "exit": os._exit(3)
        if completion == "sleep": time.sleep(1000)
        if completion == "spin": 9 ** 9 ** 9  # holds the interpreter's lock
        if completion == "slow": time.sleep(0.3)
        if completion == "raise": raise RuntimeError("no")
        if completion == "eat": bytearray(64 << 30)
        if completion == "print": print("[]" * 100)
        if completion == "recurse": self.grade(completion, answer)
        return float(answer)

belong_to_parent()
serve(Connection(int(sys.argv[1])), Faulty())
"""


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_command", lambda fd, _: [sys.executable, "-c", FAULTY, str(fd)])


@pytest.fixture(scope="module")
def math_pool() -> Iterator[GradingPool]:
    with GradingPool(VerifierSpec(name="math"), workers=2, deadline_s=2.0) as pool:
        yield pool


def gone(pids: list[int], within_s: float) -> bool:
    alive = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    return not [p for p in psutil.wait_procs(alive, timeout=within_s)[1] if p.status() != psutil.STATUS_ZOMBIE]


def children() -> set[psutil.Process]:
    return {p for p in psutil.Process().children() if p.status() != psutil.STATUS_ZOMBIE}


def test_order_duplicates_and_counters() -> None:
    with GradingPool(SPEC, workers=2) as pool:
        pairs = [(rf"\boxed{{{i % 50}}}", str(i % 3)) for i in range(200)]
        grades = pool.grade(pairs)
        assert grades == [CORRECT if i % 50 == i % 3 else WRONG for i in range(200)]
        assert pool.grade([]) == []
        assert (pool.graded, pool.timeouts, pool.crashes, pool.errors) == (200, 0, 0, 0)


@pytest.mark.usefixtures("faulty")
@pytest.mark.parametrize("workers", [1, 3])
def test_each_fault_costs_only_its_own_pair(workers: int) -> None:
    pairs = [(f"fine {i}", "1") for i in range(20)]
    faults = {3: "exit", 5: "raise", 8: "sleep", 11: "spin", 13: "eat", 14: "print", 17: "recurse"}
    for at, fault in faults.items():
        pairs[at] = (fault, "1")
    with GradingPool(SPEC, workers=workers, deadline_s=1.0) as pool:
        grades = pool.grade(pairs)
        assert [grades[at].outcome for at in faults] == [
            "crash",
            "error",
            "timeout",
            "timeout",
            "error",
            "correct",
            "error",
        ]
        assert all(grades[i] == CORRECT for i in range(20) if i not in faults)
        assert all(grades[at].reward == 0 for at in faults if faults[at] != "print")
        assert (pool.graded, pool.timeouts, pool.crashes, pool.errors) == (20, 2, 1, 3)
        assert pool.grade([("after", "1")]) == [CORRECT]


@pytest.mark.usefixtures("faulty")
def test_rewards_outside_the_unit_interval_are_errors_and_partial_ones_stay() -> None:
    with GradingPool(SPEC) as pool:
        grades = pool.grade([("a", "1.5"), ("b", "-1"), ("c", "nan"), ("d", "0.25")])
    assert [grade.outcome for grade in grades] == ["error", "error", "error", "wrong"]
    assert grades[3].reward == 0.25


@pytest.mark.usefixtures("faulty")
def test_the_deadline_is_for_one_pair_and_not_for_the_batch() -> None:
    with GradingPool(SPEC, deadline_s=1.0) as pool:
        assert pool.grade([("slow", f"0.{i}") for i in range(1, 6)]) == [Grade(i / 10, "wrong") for i in range(1, 6)]
        assert pool.timeouts == 0


@pytest.mark.parametrize(
    "completion",
    [
        r"\boxed{9^{9^{9^{9}}}}",
        r"\boxed{" + "(" * 500 + "72" + ")" * 500 + "}",
        r"\boxed{" + r"\frac{1}{" * 100 + "2" + "}" * 100 + "}",
        r"The answer is $" + r"\frac{1}{2} + " * 8_000 + "1$",
        "\\boxed{" * 15_000,
        "{" * 100_000,
        "\n" * 100_000,
        "answer is " * 10_000,
        "\0" * 1_000,
        "\\boxed{\ud800}",
        "\\boxed{７３}",
        "",
    ],
)
def test_hostile_completions_earn_nothing_in_bounded_time(math_pool: GradingPool, completion: str) -> None:
    started = time.monotonic()
    hostile, fine = math_pool.grade([(completion, "73"), (r"\boxed{146/2}", "73")])
    assert time.monotonic() - started < 60
    assert hostile.reward == 0
    assert fine == CORRECT


def test_easy_completions_are_graded_at_once(math_pool: GradingPool) -> None:
    math_pool.grade([(r"\boxed{0}", str(i)) for i in range(4)])  # both workers up
    pairs = [(f"thinking it over, {i}: " + "so " * 300 + rf"\boxed{{{i}}}", str(i % 64)) for i in range(256)]
    # Tried again for a minute: a machine may be slow for a while, and what waits for a deadline never comes to that.
    seconds, until = [], time.monotonic() + 60
    while not seconds or (min(seconds) >= 0.2 and time.monotonic() < until):
        started = time.monotonic()
        assert sum(grade.reward for grade in math_pool.grade(pairs)) == 64
        seconds.append(time.monotonic() - started)
    assert min(seconds) < 0.2


def test_calls_from_many_threads_get_their_own_grades() -> None:
    results: dict[int, list[Grade]] = {}
    with GradingPool(SPEC, workers=2) as pool:

        def work(k: int) -> None:
            results[k] = pool.grade([(str(i), str(k)) for i in range(8)])

        threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {k: [CORRECT if i == k else WRONG for i in range(8)] for k in range(8)}


@pytest.mark.usefixtures("faulty")
def test_workers_outlive_the_thread_that_needed_them() -> None:
    pools: list[GradingPool] = []
    started: set[psutil.Process] = set()

    def work() -> None:
        pools.append(GradingPool(SPEC))
        assert pools[0].grade([("exit", "1"), ("fine", "1")])[1] == CORRECT  # a replacement is started here
        started.update(children())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    time.sleep(0.3)
    assert started <= children()
    with pools[0] as pool:
        assert pool.grade([("fine", "1")]) == [CORRECT]
        assert pool.crashes == 1


def test_a_group_wide_sigterm_does_not_cost_rewards_and_an_idle_death_none_either() -> None:
    before = children()
    with GradingPool(SPEC) as pool:
        pool.grade([("a", "a")])
        (worker,) = children() - before
        worker.send_signal(signal.SIGTERM)
        assert pool.grade([("b", "b")]) == [CORRECT]
        assert children() - before == {worker}
        worker.kill()
        assert gone([worker.pid], within_s=5)
        assert pool.grade([("c", "c")]) == [CORRECT]
        assert pool.crashes == 0


def test_close_ends_the_workers_and_the_pool() -> None:
    before = children()
    pool = GradingPool(SPEC, workers=2)
    assert len(children() - before) == 2
    pool.close()
    pool.close()
    assert children() == before
    with pytest.raises(RuntimeError, match="closed"):
        pool.grade([("a", "a")])


@pytest.mark.parametrize("program", ["raise SystemExit(1)", "import os; os.abort()"])
def test_workers_that_cannot_start_stop_the_stage(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(process, "_command", lambda *_: [sys.executable, "-c", program])
    before = children()
    with GradingPool(SPEC) as pool, pytest.raises(StageFailure, match="failed to start 3 times") as caught:
        pool.grade([("a", "a")])
    assert caught.value.code == "verifier"
    assert children() == before


def test_a_program_that_is_missing_stops_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_command", lambda *_: ["/nonexistent/python"])
    with pytest.raises(StageFailure, match="failed to start"):
        GradingPool(SPEC)


PARENT = """
import sys, threading, time
from s2d.verifiers import GradingPool, VerifierSpec, process

if __name__ == "__main__":
    process._command = lambda fd, _: [sys.executable, "-c", {faulty!r}, str(fd)]
    pool = GradingPool(VerifierSpec(name="exact"), workers=2, deadline_s=1000)
    pool.grade([(str(i), "1") for i in range(4)])
    threading.Thread(target=pool.grade, args=([("{hang}", "1"), ("{hang}", "0")],), daemon=True).start()
    time.sleep(0.3)
    print(*[worker.process.pid for worker in pool._workers], flush=True)
    {end}
"""


@pytest.mark.parametrize("hang", ["fine", "sleep", "spin"])
@pytest.mark.parametrize("end", ["time.sleep(1000)", "pass"], ids=["killed", "ended"])
def test_workers_die_with_the_pools_process(hang: str, end: str) -> None:
    program = PARENT.format(faulty=FAULTY, hang=hang, end=end)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end != "pass":
            os.kill(parent.pid, signal.SIGKILL)
        parent.wait(timeout=20)
    assert gone(pids, within_s=5)


@pytest.mark.parametrize(("workers", "deadline_s"), [(0, 1.0), (1, 0.0)])
def test_a_pool_without_workers_or_time_is_refused(workers: int, deadline_s: float) -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        GradingPool(SPEC, workers=workers, deadline_s=deadline_s)
