"""How many requests one student may have in flight: what comes beyond is told to come again, and nothing queues up.

Belongs to one event loop, so counting needs no lock. Counts this process's requests only: several API processes in
front of one server each have the limit for themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from s2d.errors import TooManyRequests


class Admission:
    def __init__(self, most: int) -> None:
        self._most = most
        self._in_flight: Counter[str] = Counter()

    def enter(self, student_id: str) -> Callable[[], None]:
        """Count one request in; call what is returned, once, when it is over.

        Raises:
            TooManyRequests: the student has as many as it may.
        """
        if self._in_flight[student_id] >= self._most:
            raise TooManyRequests(
                f"{student_id} is answering {self._most} requests, the most that it may at once: try again after "
                f"{TooManyRequests.retry_after_s} s, or raise S2D_SERVE_MAX_REQUESTS."
            )
        self._in_flight[student_id] += 1
        return lambda: self._leave(student_id)

    def _leave(self, student_id: str) -> None:
        self._in_flight[student_id] -= 1
        if not self._in_flight[student_id]:
            del self._in_flight[student_id]
