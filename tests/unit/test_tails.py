"""Following a job's events: whole, in order, once for each follower, and one reader for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from s2d.services import tails as module
from s2d.services.tails import BATCH, KEPT, Tails, Told
from s2d.store.states import JobState


class Log:
    """A job's events; `told` counts the reads."""

    def __init__(self, count: int = 0, state: JobState = "running") -> None:
        self.count, self.state, self.reads = count, state, 0
        self.broken = False

    async def read(self, after: int) -> tuple[list[Told], JobState]:
        self.reads += 1
        await asyncio.sleep(0)
        if self.broken:
            raise OSError("the database is away")
        return [Told(n, f"{n} ".encode()) for n in range(after + 1, min(self.count, after + BATCH) + 1)], self.state


async def all_of(tails: Tails, log: Log, after: int = 0) -> list[int]:
    seen: list[int] = []
    end = None
    async for told in tails.follow("job", log.read, after, 60):
        assert end is None, "nothing comes after the end"
        if isinstance(told, bytes):
            seen += [int(n) for n in told.split()]
        else:
            end = told
    assert end == "succeeded"
    return seen


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.02)


def run(main: Callable[[], Awaitable[Any]]) -> Any:
    async def within() -> Any:
        async with asyncio.timeout(20):
            return await main()

    return asyncio.run(within())


@pytest.mark.parametrize("after", [0, 1, BATCH, KEPT, 3 * KEPT - 1, 3 * KEPT])
def test_every_follower_gets_everything_after_its_place(after: int) -> None:
    async def main() -> None:
        log, tails = Log(3 * KEPT), Tails()
        early = [asyncio.create_task(all_of(tails, log, after)) for _ in range(3)]
        late = asyncio.create_task(late_one(tails, log))
        await asyncio.sleep(0.1)
        log.count += 7
        await asyncio.sleep(0.1)
        log.count, log.state = log.count + 1, "succeeded"
        whole = list(range(after + 1, 3 * KEPT + 9))
        assert [await follower for follower in early] == [whole] * 3
        assert await late == list(range(1, 3 * KEPT + 9))

    async def late_one(tails: Tails, log: Log) -> list[int]:
        await asyncio.sleep(0.05)
        return await all_of(tails, log)

    run(main)


def test_many_followers_cost_as_many_reads_as_one() -> None:
    async def main() -> None:
        log, tails = Log(5), Tails()
        followers = [asyncio.create_task(all_of(tails, log)) for _ in range(200)]
        await asyncio.sleep(0.5)
        log.state = "succeeded"
        assert [await follower for follower in followers] == [[1, 2, 3, 4, 5]] * 200
        assert log.reads < 60
        assert not tails._tails, "nobody follows, so nobody reads"

    run(main)


def test_a_job_that_ended_is_told_at_once_and_can_be_followed_again() -> None:
    async def main() -> None:
        log, tails = Log(2, "succeeded"), Tails()
        assert await all_of(tails, log) == [1, 2]
        log.count = 3
        assert await all_of(tails, log, 2) == [3]

    run(main)


def test_what_goes_wrong_reaches_every_follower_and_the_next_one_begins_anew() -> None:
    async def main() -> None:
        log, tails = Log(1), Tails()
        followers = [asyncio.create_task(all_of(tails, log)) for _ in range(3)]
        await asyncio.sleep(0.1)
        log.broken = True
        for follower in followers:
            with pytest.raises(OSError, match="away"):
                await follower
        log.broken, log.state = False, "succeeded"
        assert await all_of(tails, log) == [1]

    run(main)


def test_silence_is_filled() -> None:
    async def main() -> None:
        log, tails = Log(1), Tails()
        stream = tails.follow("job", log.read, 0, 0.05)
        assert [await anext(stream) for _ in range(3)] == [b"1 ", b"", b""]
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        reads = log.reads
        await asyncio.sleep(0.2)
        assert log.reads == reads, "nobody follows, so nobody reads"

    run(main)
