"""Sends what the outbox holds, and again what the broker lost. Every worker does it: a message sent twice is harmless,
the claim decides."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kombu.exceptions import OperationalError

from s2d.services.context import Context
from s2d.store import outbox
from s2d.store.outbox import Message
from worker.threads import Periodic

INTERVAL_S = 0.5
#: A queued job's message is sent again after this many leases: the broker may have lost it.
RESEND_LEASES = 2
_log = logging.getLogger("s2d.worker")


class Outbox(Periodic):
    def __init__(self, ctx: Callable[[], Context], publish: Callable[[Message], None]) -> None:
        super().__init__("outbox", INTERVAL_S)
        self._ctx = ctx
        self._publish = publish

    def turn(self) -> None:
        db = self._ctx().db
        with db.read() as session:
            waiting = outbox.unsent(session)
        for message in waiting:
            # Sent first, marked after: a death between the two sends it again.
            self._publish(message)
            with db.begin() as session:
                outbox.mark_sent(session, message.id)


class Resend(Periodic):
    """A thread of its own, as a broker that hangs must keep nobody from anything else.

    Args:
        held: how many messages the broker has; raises OperationalError while it is away.
    """

    def __init__(self, ctx: Callable[[], Context], lease_s: float, held: Callable[[], int]) -> None:
        super().__init__("resend", lease_s / 4)
        self._ctx = ctx
        self._patience_s = RESEND_LEASES * lease_s
        self._held = held

    def turn(self) -> None:
        try:
            held = self._held()
        except OperationalError as err:
            _log.warning("the broker cannot be asked what it holds: %s", err)
            return
        with self._ctx().db.begin() as session:
            outbox.resend_stale(session, self._patience_s, held)
