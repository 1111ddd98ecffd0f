"""A job's events as they happen: read once for all who follow the job, however many those are.

Belongs to one event loop. Each process reads for itself, each job every `POLL_S` seconds, and only while somebody
follows it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from s2d.store.states import FINAL, JobState

POLL_S = 0.5
#: Events that one read fetches, and that are kept for followers who come or lag behind.
BATCH = 500
KEPT = 4 * BATCH


class Told(NamedTuple):
    """An event, as it is sent."""

    seq: int
    frame: bytes


#: Events after a number, at most `BATCH`, and the job's state when they were read.
Read = Callable[[int], Awaitable[tuple[Sequence[Told], JobState]]]


class _Tail:
    """One job's newest events. It reads from the end that the first follower found; what is older, followers read."""

    def __init__(self, read: Read, after: int) -> None:
        self.followers = 0
        self.state: JobState | None = None
        self.error: Exception | None = None
        self._read = read
        self._told: deque[Told] = deque(maxlen=KEPT)
        self._last = after
        self._news = asyncio.Event()
        self._task = asyncio.create_task(self._follow())

    def since(self, after: int) -> list[Told] | None:
        """What has come after that number; None when some of it is not kept."""
        first = self._told[0].seq - 1 if self._told else self._last
        if after < first:
            return None
        # From the new end: followers are seldom far behind.
        found: list[Told] = []
        for told in reversed(self._told):
            if told.seq <= after:
                break
            found.append(told)
        return found[::-1]

    async def news(self, wait_s: float) -> bool:
        """Wait for more; False when nothing came in time."""
        try:
            async with asyncio.timeout(wait_s):
                await self._news.wait()
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        self._task.cancel()

    async def _follow(self) -> None:
        try:
            while self.state not in FINAL:
                told, state = await self._read(self._last)
                self._told += told
                self._last = told[-1].seq if told else self._last
                # The state counts once all events up to it are here.
                whole = len(told) < BATCH
                self.state = state if whole else self.state
                if told or self.state in FINAL:
                    self._wake()
                if whole and self.state not in FINAL:
                    await asyncio.sleep(POLL_S)
        except Exception as error:  # whoever follows is told
            self.error = error
            self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class Tails:
    """The jobs that are followed now."""

    def __init__(self) -> None:
        self._tails: dict[str, _Tail] = {}

    async def follow(self, job_id: str, read: Read, after: int, heartbeat_s: float) -> AsyncGenerator[bytes | JobState]:
        """Frames after number `after` as they come, `b""` after so long a silence, and last the state in which the job
        ended. Raises what `read` raises."""
        with self._tail(job_id, read, after) as tail:
            while True:
                told = tail.since(after)
                if told is None:
                    told = list((await read(after))[0])
                if told:
                    yield b"".join(event.frame for event in told)
                    after = told[-1].seq
                elif tail.error is not None:
                    raise tail.error
                elif tail.state in FINAL:
                    yield tail.state
                    return
                elif not await tail.news(heartbeat_s):
                    yield b""

    @contextmanager
    def _tail(self, job_id: str, read: Read, after: int) -> Iterator[_Tail]:
        tail = self._tails.get(job_id)
        if tail is None or tail.error is not None or tail.state in FINAL:
            tail = self._tails[job_id] = _Tail(read, after)
        tail.followers += 1
        try:
            yield tail
        finally:
            tail.followers -= 1
            if not tail.followers:
                tail.end()
                if self._tails.get(job_id) is tail:
                    del self._tails[job_id]
