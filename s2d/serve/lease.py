"""A caller's hold on a running student server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from s2d.serve.engine import Engine


@dataclass
class Lease:
    """While it is held, the server is not stopped for being idle. Release it once; a second release does nothing."""

    student_id: str
    path: Path
    engine: Engine
    base_url: str
    model: str
    _on_release: Callable[[], None] | None = field(default=None, repr=False)

    @property
    def verbatim(self) -> bool:
        """Whether the server's answers are OpenAI's as they come, under the student's own name."""
        return not self.engine.keeps_stop and self.model == self.student_id

    def release(self) -> None:
        on_release, self._on_release = self._on_release, None
        if on_release is not None:
            on_release()

    def also(self, on_release: Callable[[], None]) -> Self:
        """Call this as well when the lease is released."""
        before = self._on_release

        def both() -> None:
            on_release()
            if before is not None:
                before()

        self._on_release = both
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
