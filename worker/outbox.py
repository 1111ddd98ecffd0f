"""Sends what the outbox holds. Every worker does it: a message sent twice is harmless, the claim decides."""

from __future__ import annotations

from collections.abc import Callable

from s2d.services.context import Context
from s2d.store import outbox
from worker.threads import Periodic

INTERVAL_S = 0.5


class Outbox(Periodic):
    def __init__(self, ctx: Callable[[], Context], publish: Callable[[str], None]) -> None:
        super().__init__("outbox", INTERVAL_S)
        self._ctx = ctx
        self._publish = publish

    def turn(self) -> None:
        db = self._ctx().db
        with db.read() as session:
            waiting = [(row.id, row.job_id) for row in outbox.unsent(session)]
        for message_id, job_id in waiting:
            # Sent first, marked after: a death between the two sends it again.
            self._publish(job_id)
            with db.begin() as session:
                outbox.mark_sent(session, message_id)
