"""Finds jobs whose worker is gone and messages that the broker lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from s2d.services.context import Context
from s2d.store import jobs, outbox
from worker.threads import Periodic

_log = logging.getLogger("s2d.worker")

#: A queued job's message is sent again after this many leases: the broker may have lost it.
RESEND_LEASES = 2


class Reaper(Periodic):
    def __init__(self, ctx: Callable[[], Context], lease_s: float) -> None:
        super().__init__("reaper", lease_s / 4)
        self._ctx = ctx

    def turn(self) -> None:
        ctx = self._ctx()
        settings = ctx.settings
        with ctx.db.begin() as session:
            moved = jobs.requeue_lost(session, settings.max_attempts, settings.backoff_s)
            outbox.resend_stale(session, RESEND_LEASES * settings.lease_s)
        for job_id, state in moved:
            _log.warning("job %s lost its worker and is now %s", job_id, state)
