"""The verifiers' processes of a service: kept between requests, a few at a time, shared by all who grade."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from s2d.errors import StageFailure, Unavailable
from s2d.verifiers.base import VerifierSpec
from s2d.verifiers.pool import Grade, GradingPool
from s2d.verifiers.process import Pair

#: Verifiers whose processes are kept. Beyond that, the one that nobody has used for longest ends.
MOST = 4
#: Questions that are graded at once from an event loop.
AT_ONCE = 4


@dataclass
class _Kept:
    pool: GradingPool
    users: int = 0


class Grading:
    """Thread-safe; `close` it. A pair that hangs holds up those who use the same verifier, by the pool's deadline."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="grading")
        # In the order of their last use.
        self._kept: dict[str, _Kept] = {}

    def grade(self, spec: VerifierSpec, pairs: Sequence[Pair]) -> list[Grade]:
        """One grade per (completion, label), in order. Blocks.

        Raises:
            Unavailable: code "verifier_unavailable"; the verifier's processes do not start.
        """
        try:
            with self._borrowed(spec) as pool:
                return pool.grade(pairs)
        except StageFailure as err:
            raise Unavailable(err.message, code="verifier_unavailable") from err
        except RuntimeError as err:
            # Another caller found that its processes do not start, while this one waited for them.
            raise Unavailable(f"The verifier cannot be used: {err}.", code="verifier_unavailable") from err

    async def grade_async(self, spec: VerifierSpec, pairs: Sequence[Pair]) -> list[Grade]:
        """`grade` for an event loop, on threads of its own: completions that hang hold up nothing else."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.grade, spec, pairs)

    def close(self) -> None:
        """Ends every process; nobody may grade any more."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            kept, self._kept = self._kept, {}
        for one in kept.values():
            one.pool.close()

    @contextmanager
    def _borrowed(self, spec: VerifierSpec) -> Iterator[GradingPool]:
        name = spec.model_dump_json()
        with self._lock:
            # A pool starts its processes before it is there; the verifier in them loads later, and nobody waits here.
            kept = self._kept.pop(name, None) or _Kept(GradingPool(spec))
            self._kept[name] = kept
            kept.users += 1
            spare = self._spare()
        for one in spare:
            one.pool.close()
        try:
            yield kept.pool
        except BaseException:
            # It has ended its processes: the next caller gets new ones.
            self._forget(name, kept)
            raise
        finally:
            with self._lock:
                kept.users -= 1

    def _spare(self) -> list[_Kept]:
        """Takes out the oldest that nobody uses, until few enough are left."""
        unused = [name for name, one in self._kept.items() if not one.users]
        return [self._kept.pop(name) for name in unused[: max(0, len(self._kept) - self._most)]]

    def _forget(self, name: str, kept: _Kept) -> None:
        with self._lock:
            if self._kept.get(name) is kept:
                del self._kept[name]
