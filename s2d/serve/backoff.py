"""How long to leave a student's server alone after it failed again and again."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque

from s2d.errors import Unavailable

#: Failures older than this are forgotten.
WINDOW_S = 300.0
FIRST_DELAY_S = 5.0
LONGEST_DELAY_S = 60.0


class Backoff:
    """Not thread-safe by itself: the pool calls it under its lock. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._failures: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=8))

    def failed(self, student_id: str) -> None:
        self._failures[student_id].append(time.monotonic())

    def check(self, student_id: str) -> None:
        """One failure may be followed by a new start at once; after more, raises Unavailable for a while."""
        wait_s = self._wait_s(student_id)
        if wait_s > 0:
            error = Unavailable(
                f"the server of {student_id} failed repeatedly: try again in {wait_s:.0f} s, and see its log",
                code="student_server_failed",
            )
            error.retry_after_s = math.ceil(wait_s)
            raise error

    def _wait_s(self, student_id: str) -> float:
        now = time.monotonic()
        recent = [when for when in self._failures.get(student_id, ()) if now - when < WINDOW_S]
        if len(recent) < 2:
            return 0.0
        delay = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** (len(recent) - 2))
        return recent[-1] + delay - now
