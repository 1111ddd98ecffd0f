"""How often a key may ask: a token bucket each, in this process' memory.

Several API processes count for themselves, so a key may ask as often of each. A restart forgives everything.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from s2d.errors import TooManyRequests

_BUCKETS = 10_000


@dataclass
class _Bucket:
    left: float
    filled_at: float


class Rates:
    """Belongs to one event loop. A key may use up a whole minute's requests at once, then gets them back evenly."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key_id: str, per_min: int | None) -> None:
        """Count one request; None is without limit.

        Raises:
            TooManyRequests: the key has used up its requests; `retry_after_s` says when it has one again.
        """
        if per_min is None:
            return
        bucket = self._filled(key_id, per_min)
        # Whoever waits exactly as told must not fail by a rounding.
        if bucket.left < 1.0 - 1e-6:
            error = TooManyRequests(f"This key may send {per_min} requests a minute.", code="rate_limited")
            error.retry_after_s = math.ceil((1.0 - bucket.left) * 60.0 / per_min)
            raise error
        bucket.left = max(0.0, bucket.left - 1.0)

    def _filled(self, key_id: str, per_min: int) -> _Bucket:
        now = self._clock()
        bucket = self._buckets.get(key_id)
        if bucket is None:
            self._forget_full(now)
            bucket = self._buckets[key_id] = _Bucket(float(per_min), now)
        bucket.left = min(float(per_min), bucket.left + (now - bucket.filled_at) * per_min / 60.0)
        bucket.filled_at = now
        return bucket

    def _forget_full(self, now: float) -> None:
        # A bucket that nobody touched for a minute is full again, so nothing is lost with it.
        if len(self._buckets) >= _BUCKETS:
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket.filled_at < 60.0}
