"""What was asked a moment ago, so that many who want to know the same ask once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_KEPT = 10_000


class Recent(Generic[K, V]):
    """Answers by key. Belongs to one event loop; only `forget` and `forget_all` may be called from other threads.

    Whoever asks while somebody is asking the same waits for that answer. An error is everybody's who waited, and is not
    kept.
    """

    def __init__(self) -> None:
        self._answers: dict[K, tuple[V, float]] = {}
        self._asking: dict[K, asyncio.Task[V]] = {}
        self._lock = threading.Lock()

    def known(self, key: K, fresh_s: float) -> V | None:
        """The answer, if it is less than so many seconds old."""
        found = self._answers.get(key)
        return found[0] if found is not None and time.monotonic() - found[1] < fresh_s else None

    async def get(self, key: K, fresh_s: float, ask: Callable[[], Coroutine[Any, Any, V]]) -> V:
        """The answer, not older than so many seconds. Raises what `ask` raises."""
        found = self.known(key, fresh_s)
        if found is not None:
            return found
        asking = self._asking.get(key)
        if asking is None:
            asking = self._asking[key] = asyncio.create_task(self._ask(key, ask))
            asking.add_done_callback(_seen)
        # Shielded: one who leaves must not take the others' answer with him.
        return await asyncio.shield(asking)

    def forget(self, key: K) -> None:
        """Ask anew next time; an answer that is on its way may be from before, so nobody new waits for it."""
        with self._lock:
            self._answers.pop(key, None)
            self._asking.pop(key, None)

    def forget_all(self) -> None:
        with self._lock:
            self._answers.clear()
            self._asking.clear()

    async def _ask(self, key: K, ask: Callable[[], Coroutine[Any, Any, V]]) -> V:
        me = asyncio.current_task()
        began = time.monotonic()
        try:
            answer = await ask()
            with self._lock:
                if self._asking.get(key) is me:
                    if len(self._answers) >= _KEPT:
                        self._answers.clear()
                    self._answers[key] = answer, began
            return answer
        finally:
            with self._lock:
                if self._asking.get(key) is me:
                    del self._asking[key]


def _seen(done: asyncio.Task[Any]) -> None:
    # An error that nobody waited for any more is nobody's, and not one that was forgotten.
    if not done.cancelled():
        done.exception()
