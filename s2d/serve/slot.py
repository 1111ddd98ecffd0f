"""One student's server in the pool, and who uses it. The pool's lock guards it."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from s2d.serve.process import ServerProcess


@dataclass(eq=False)
class Slot:
    """`ready` resolves when the server has generated a token, or with the reason why not."""

    student_id: str
    path: Path
    server: ServerProcess
    ready: Future[None] = field(default_factory=Future)
    in_flight: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def memory_gib(self) -> float:
        return self.server.launch.memory_gib

    def up(self) -> bool:
        """Whether it has started well; it may have died since."""
        return self.ready.done() and self.ready.exception() is None

    def idle(self) -> bool:
        return self.ready.done() and self.in_flight == 0

    def died(self) -> bool:
        return self.ready.done() and not self.server.alive()

    def unused_since(self, when: float) -> bool:
        """Whether nobody has used it since that monotonic time."""
        return self.idle() and self.last_used < when
