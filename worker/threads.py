"""A daemon thread that does one thing again and again, and goes on after an error."""

from __future__ import annotations

import logging
import threading

_log = logging.getLogger("s2d.worker")


class Periodic(threading.Thread):
    """Calls `turn` every `interval_s` seconds until stopped. An error is logged; the next turn comes."""

    def __init__(self, name: str, interval_s: float) -> None:
        super().__init__(name=name, daemon=True)
        self._interval_s = interval_s
        self._stopping = threading.Event()

    def turn(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.turn()
            except Exception:
                # The database or the broker may be away for a while; both are expected to come back.
                _log.exception("%s: this turn failed, the next comes in %.1f s", self.name, self._interval_s)
            self._stopping.wait(self._interval_s)

    def stop(self) -> None:
        self._stopping.set()
