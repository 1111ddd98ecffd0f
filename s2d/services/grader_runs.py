"""One sample graded, as a client tries out a grader: string checks here, verifiers in processes that can be killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from s2d.errors import TooManyRequests
from s2d.services import formula
from s2d.services.graders import Multi, StringCheck, Verify
from s2d.services.grading import Grading
from s2d.services.templates import Namespace, Unresolved
from s2d.verifiers.pool import Outcome

#: Verifications at once. One that hangs holds its thread until the verifier's deadline, and threads are few.
AT_ONCE = 4

Fault = Literal["invalid_variable_error", "sample_parse_error", "unresponsive_reward_error", "other_error"]
_FAULTS: Mapping[Outcome, Fault] = {
    "timeout": "unresponsive_reward_error",
    "crash": "other_error",
    "error": "other_error",
}


@dataclass(frozen=True)
class Score:
    """`fault`: why the reward is 0 although nothing was compared. `outcome`: the verifier's own word."""

    reward: float
    fault: Fault | None = None
    outcome: Outcome | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Run:
    """A grader's score, and that of each of its parts by name."""

    score: Score
    parts: Mapping[str, Score]
    seconds: float

    @property
    def faults(self) -> set[Fault]:
        return {score.fault for score in (self.score, *self.parts.values()) if score.fault}


@dataclass(frozen=True)
class GraderRuns:
    """Runs graders. Thread-safe; belongs to one service, as its `grading` does."""

    grading: Grading
    _turns: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(AT_ONCE))

    def run(self, grader: StringCheck | Verify | Multi, sample: str, item: Any) -> Run:
        """The sample's score. What a sample does to its verifier costs it its reward and nothing else.

        Raises:
            TooManyRequests: code "graders_busy"; as many verify as may at once.
            Unavailable: the verifier's processes do not start.
            InvalidRequest: see `Namespace.render`.
        """
        began = time.monotonic()
        names = Namespace(sample, item)
        if isinstance(grader, Multi):
            parts = {name: self._score(part, names) for name, part in grader.graders.items()}
            score = _joined(grader, parts)
        else:
            parts, score = {}, self._score(grader, names)
        return Run(score, parts, time.monotonic() - began)

    def _score(self, grader: StringCheck | Verify, names: Namespace) -> Score:
        try:
            given, reference = names.render(grader.input), names.render(grader.reference)
        except Unresolved as err:
            return Score(0.0, err.kind, reason=str(err))
        if isinstance(grader, StringCheck):
            return Score(float(_holds(grader.operation, given, reference)))
        with self._turn():
            (grade,) = self.grading.grade(grader.spec, [(given, reference)])
        return Score(grade.reward, _FAULTS.get(grade.outcome), grade.outcome)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if not self._turns.acquire(blocking=False):
            raise TooManyRequests(
                f"{AT_ONCE} samples are being verified, the most at once. Try again in a moment.", code="graders_busy"
            )
        try:
            yield
        finally:
            self._turns.release()


def _holds(operation: Literal["eq", "ne", "like", "ilike"], given: str, reference: str) -> bool:
    match operation:
        case "eq":
            return given == reference
        case "ne":
            return given != reference
        case "like":
            return reference in given
        case "ilike":
            return reference.casefold() in given.casefold()


def _joined(grader: Multi, parts: Mapping[str, Score]) -> Score:
    join = formula.read(grader.calculate_output, grader.graders)
    try:
        return Score(join({name: part.reward for name, part in parts.items()}))
    except ArithmeticError as err:
        return Score(0.0, "other_error", reason=f"the formula has no value: {err}")
