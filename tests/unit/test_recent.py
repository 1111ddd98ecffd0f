"""Many who want to know the same ask once, and nobody is told what is too old."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from s2d.recent import Recent


class Source:
    def __init__(self) -> None:
        self.asked = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.asked += 1
        number = self.asked
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return number


def run(main: Callable[[Recent[str, int], Source], Awaitable[Any]]) -> None:
    async def within() -> None:
        async with asyncio.timeout(10):
            await main(Recent(), Source())

    asyncio.run(within())


def test_all_who_come_while_one_asks_wait_for_that_answer() -> None:
    async def main(recent: Recent[str, int], source: Source) -> None:
        waiting = [asyncio.create_task(recent.get("a", 60, source)) for _ in range(50)]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        source.gate.set()
        assert [await task for task in waiting[1:]] == [1] * 49
        assert await recent.get("a", 60, source) == 1
        assert await recent.get("b", 60, source) == 2

    run(main)


def test_what_is_too_old_is_asked_again() -> None:
    async def main(recent: Recent[str, int], source: Source) -> None:
        source.gate.set()
        assert await recent.get("a", 60, source) == 1
        await asyncio.sleep(0.02)
        assert recent.known("a", 0.01) is None
        assert recent.known("a", 60) == 1
        assert await recent.get("a", 0.01, source) == 2

    run(main)


def test_an_error_reaches_all_who_waited_and_is_not_kept() -> None:
    async def main(recent: Recent[str, int], source: Source) -> None:
        source.error = OSError("away")
        waiting = [asyncio.create_task(recent.get("a", 60, source)) for _ in range(3)]
        await asyncio.sleep(0.01)
        source.gate.set()
        for task in waiting:
            with pytest.raises(OSError, match="away"):
                await task
        source.error = None
        assert await recent.get("a", 60, source) == 2

    run(main)


def test_what_was_on_its_way_when_it_was_forgotten_is_not_kept() -> None:
    async def main(recent: Recent[str, int], source: Source) -> None:
        early = asyncio.create_task(recent.get("a", 60, source))
        await asyncio.sleep(0.01)
        recent.forget("a")
        late = asyncio.create_task(recent.get("a", 60, source))
        await asyncio.sleep(0.01)
        source.gate.set()
        assert (await early, await late) == (1, 2)
        assert recent.known("a", 60) == 2

    run(main)
