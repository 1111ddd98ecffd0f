"""Grades with processes that can be killed: a completion that hangs or kills its verifier costs only itself.

Each worker is given a few pairs at a time and answers pair by pair, so the deadline runs per pair.

Not guaranteed: that a pair which crashed its worker is at fault. A worker killed from outside looks the same.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait
from types import TracebackType
from typing import Literal, Self

from s2d.errors import StageFailure
from s2d.verifiers.base import VerifierSpec
from s2d.verifiers.process import Pair, WorkerProcess

Outcome = Literal["correct", "wrong", "timeout", "crash", "error"]

#: So many workers in a row may fail to start before the pool gives up.
MAX_FAILED_STARTS = 3

#: Pairs sent to a worker at once: enough to hide the round trip, few enough to share the work evenly.
BATCH = 16

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Grade:
    """`reward` in [0, 1]; "correct" means a reward of 1; timeout, crash and error have reward 0."""

    reward: float
    outcome: Outcome


class GradingPool:
    """`workers` processes that grade (completion, label) pairs, each pair within `deadline_s` seconds.

    Usable from any thread (calls take turns). Close it, or use it as a context manager. The counters
    `graded`, `timeouts`, `crashes` and `errors` count the grades given so far.
    """

    def __init__(self, spec: VerifierSpec, workers: int = 1, deadline_s: float = 5.0) -> None:
        if workers < 1 or deadline_s <= 0:
            raise ValueError("a pool needs at least one worker and a deadline above 0 s")
        self._spec = spec
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        # The kernel ends a worker with the *thread* that started it: one thread, as old as the pool, starts all.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="verifier-starter")
        self._failed_starts = 0
        self._outcomes: Counter[Outcome] = Counter()
        self._workers: list[WorkerProcess] = []
        try:
            self._workers.extend(self._start() for _ in range(workers))
        except BaseException:
            self._stop()
            raise

    @property
    def graded(self) -> int:
        return self._outcomes.total()

    @property
    def timeouts(self) -> int:
        return self._outcomes["timeout"]

    @property
    def crashes(self) -> int:
        return self._outcomes["crash"]

    @property
    def errors(self) -> int:
        return self._outcomes["error"]

    def grade(self, pairs: Sequence[Pair]) -> list[Grade]:
        """One grade per (completion, label), in order; equal pairs are graded once.

        Raises StageFailure (code "verifier") when no worker can be started, RuntimeError on a closed pool.
        """
        with self._lock:
            if not self._workers:
                raise RuntimeError("this GradingPool is closed")
            try:
                by_pair = self._grade_unique(list(dict.fromkeys(pairs)))
            except BaseException:
                self._stop()  # answers that nobody waits for any more must not meet the next call's pairs
                raise
            grades = [by_pair[pair] for pair in pairs]
            self._outcomes.update(grade.outcome for grade in grades)
        return grades

    def close(self) -> None:
        """Ends the workers; idempotent."""
        with self._lock:
            self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.kill()
        self._workers = []
        self._starter.shutdown()

    def _grade_unique(self, pairs: list[Pair]) -> dict[Pair, Grade]:
        todo, done = deque(pairs), dict[Pair, Grade]()
        batch = max(1, min(BATCH, math.ceil(len(pairs) / len(self._workers))))
        while len(done) < len(pairs):
            self._hand_out(todo, batch)
            waiting = [worker for worker in self._workers if worker.due is not None]
            patience = min((worker.due or 0.0) for worker in waiting) - time.monotonic()
            ready = set(wait([worker.connection for worker in waiting], timeout=max(0.0, patience)))
            for worker in waiting:
                if worker.connection in ready:
                    self._read(worker, todo, done)
                elif worker.overdue():
                    self._replace(worker, "timeout", todo, done)
        return done

    def _hand_out(self, todo: deque[Pair], batch: int) -> None:
        for worker in list(self._workers):
            if todo and worker.idle:
                pairs = [todo.popleft() for _ in range(min(batch, len(todo)))]
                try:
                    worker.send(pairs, self._deadline_s)
                except OSError:  # it died while idle, which is none of these pairs' fault
                    todo.extendleft(reversed(pairs))
                    self._renew(worker)

    def _read(self, worker: WorkerProcess, todo: deque[Pair], done: dict[Pair, Grade]) -> None:
        try:
            message = worker.receive()
        except (EOFError, OSError):
            self._replace(worker, "crash", todo, done)
            return
        if message == "ready":
            worker.due = None
            self._failed_starts = 0
            return
        pair = worker.pending.popleft()
        done[pair] = _grade(*message)
        worker.due = time.monotonic() + self._deadline_s if worker.pending else None

    def _replace(
        self,
        worker: WorkerProcess,
        outcome: Literal["timeout", "crash"],
        todo: deque[Pair],
        done: dict[Pair, Grade],
    ) -> None:
        """Ends a worker that hangs or is dead: the pair it was at gets `outcome`, those behind it go back."""
        if worker.pending:
            done[worker.pending.popleft()] = Grade(0.0, outcome)
            todo.extendleft(reversed(worker.pending))
            _log.warning("verifier %s: %s on one completion", self._spec.name, outcome)
        else:
            self._count_failed_start(f"{outcome} before it was ready")
        self._renew(worker)

    def _renew(self, worker: WorkerProcess) -> None:
        worker.kill()
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> WorkerProcess:
        while True:
            try:
                return self._starter.submit(WorkerProcess, self._spec).result()
            except OSError as error:
                self._count_failed_start(str(error))

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise StageFailure(
                f"a process of the {self._spec.name} verifier failed to start {self._failed_starts} times "
                f"in a row ({reason}); its own output is in the log",
                code="verifier",
            )


def _grade(status: Literal["ok", "error"], value: float | str) -> Grade:
    if isinstance(value, str):
        _log.warning("verifier %s: %s", status, value)
        return Grade(0.0, "error")
    return Grade(value, "correct" if value == 1.0 else "wrong")
