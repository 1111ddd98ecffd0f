"""Keeps parts running: a dead one is started again after a pause that doubles; one that keeps dying is given up."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from s2d.embedded.part import Part
from s2d.errors import Unavailable

_log = logging.getLogger("s2d.embedded")

POLL_S = 0.2
FIRST_PAUSE_S = 0.5
#: So many deaths within so many seconds: starting it again does not help.
MAX_DEATHS = 5
WINDOW_S = 120.0


class PartFailed(Unavailable):
    """A part of the service does not stay up; the message ends with the last lines of its log."""

    code = "part_failed"


def part_failed(part: Part, reason: str) -> PartFailed:
    return PartFailed(f"The {part.name} {reason}. The end of {part.log_path}:\n{part.log_tail()}")


class Supervisor:
    """Watches from a thread of its own between `start` and `stop`. `announce` is told of each death."""

    def __init__(self, parts: Sequence[Part], announce: Callable[[str], None]) -> None:
        self._parts = parts
        self._announce = announce
        self._stopping = threading.Event()
        self._failure: PartFailed | None = None
        self._deaths: dict[str, deque[float]] = {part.name: deque() for part in parts}
        self._restart_at: dict[str, float] = {}
        self._thread = threading.Thread(target=self._watch, name="s2d-supervisor", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No part is started again after this."""
        self._stopping.set()
        self._thread.join()

    def check(self) -> None:
        """Raises PartFailed once a part has been given up."""
        if self._failure is not None:
            raise self._failure

    def _watch(self) -> None:
        while self._failure is None and not self._stopping.wait(POLL_S):
            for part in self._parts:
                try:
                    self._look_after(part)
                except Exception as err:
                    # Whoever waits would wait for ever for a service that nobody looks after.
                    self._failure = PartFailed(f"The {part.name} can no longer be looked after: {err!r}.")
                    self._failure.__cause__ = err

    def _look_after(self, part: Part) -> None:
        due = self._restart_at.get(part.name)
        if due is None and not part.alive():
            self._died(part)
        elif due is not None and time.monotonic() >= due:
            del self._restart_at[part.name]
            try:
                part.start()
            except OSError as err:  # no memory or no processes left, for now
                self._again(part, f"could not be started ({err})")

    def _died(self, part: Part) -> None:
        self._again(part, f"died (exit code {part.end()})")

    def _again(self, part: Part, what: str) -> None:
        now = time.monotonic()
        deaths = self._deaths[part.name]
        deaths.append(now)
        while deaths[0] < now - WINDOW_S:
            deaths.popleft()
        if len(deaths) >= MAX_DEATHS:
            self._failure = part_failed(part, f"failed {MAX_DEATHS} times within {WINDOW_S:.0f} s; at last it {what}")
            return
        pause = FIRST_PAUSE_S * 2 ** (len(deaths) - 1)
        self._restart_at[part.name] = now + pause
        try:
            self._announce(f"The {part.name} {what}; starting it again in {pause:g} s. Log: {part.log_path}")
        except (Exception, SystemExit):  # rich's answer to a terminal that is gone is SystemExit
            _log.exception("%s %s, and nobody could be told", part.name, what)
