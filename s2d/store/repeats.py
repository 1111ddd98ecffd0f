"""Requests that a client sends again because no answer came, without an idempotency key: they give the first's job.

The stock `openai` client repeats a POST after a lost connection and says so in a header, and in nothing else. Two equal
requests of which neither is a repetition are two wishes. A repetition may overtake the request that it repeats; then
the latter gets the former's job.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from s2d.store.database import db_now
from s2d.store.idempotency import own_scope
from s2d.store.tables import IdempotencyRow

#: The client waits 600 s for an answer before it asks again.
WINDOW_S = 900.0


@dataclass(frozen=True)
class Sending:
    """One arrival of a request. `fingerprint`: equal for equal requests, at most 64 characters."""

    scope: str
    fingerprint: str
    again: bool
    came: float = field(default_factory=time.monotonic)


def recall(session: Session, sending: Sending) -> str | None:
    """The id that this very request has made before; None when it has not.

    Of several sendings at the same moment one comes first; the others wait here until its transaction has ended.
    """
    made = _newest(session, sending.scope, sending)
    if made is None:
        _reserve(session, sending)
        made = _newest(session, sending.scope, sending)
    if sending.again:
        return _within(made, WINDOW_S)
    overtaken = _newest(session, _by_repetition(sending.scope), sending)
    return _within(overtaken, time.monotonic() - sending.came)


def remember(session: Session, sending: Sending, resource_id: str) -> None:
    """What this sending has made; in the transaction in which it was not recalled."""
    _put(session, sending.scope, sending, resource_id)
    if sending.again:
        _put(session, _by_repetition(sending.scope), sending, resource_id)


def _by_repetition(scope: str) -> str:
    return f"{scope}:again"


def _reserve(session: Session, sending: Sending) -> None:
    """A row to lock, which has made nothing."""
    own = own_scope(session, sending.scope)
    fingerprint = sending.fingerprint
    row = IdempotencyRow(scope=own, key=fingerprint, request_hash=fingerprint, resource_id="", created_at=0)
    # Another one may have made it at the same moment: then this waited for its end, and all is well.
    with suppress(IntegrityError), session.begin_nested():
        session.add(row)


def _newest(session: Session, scope: str, sending: Sending) -> tuple[str, float] | None:
    """The id and its age in seconds, on the database's clock. Locked until the transaction ends."""
    query = select(IdempotencyRow.resource_id, db_now() - IdempotencyRow.created_at).where(
        IdempotencyRow.scope == own_scope(session, scope), IdempotencyRow.key == sending.fingerprint
    )
    row = session.execute(query.with_for_update()).one_or_none()
    return None if row is None else (row[0], row[1])


def _within(made: tuple[str, float] | None, seconds: float) -> str | None:
    return made[0] if made is not None and made[1] <= seconds else None


def _put(session: Session, scope: str, sending: Sending, resource_id: str) -> None:
    own = own_scope(session, scope)
    row = session.get(IdempotencyRow, (own, sending.fingerprint))
    if row is None:
        row = IdempotencyRow(scope=own, key=sending.fingerprint, request_hash=sending.fingerprint)
        session.add(row)
    row.resource_id, row.created_at = resource_id, db_now()
    session.flush()
