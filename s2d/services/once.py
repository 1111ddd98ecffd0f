"""Making something once for one idempotency key, however often and at whatever moments it is asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from s2d.errors import Conflict
from s2d.services.context import Context
from s2d.store import idempotency


class Named(Protocol):
    @property
    def id(self) -> str: ...


Made = TypeVar("Made", bound=Named)


def once(
    ctx: Context,
    scope: str,
    key: str | None,
    digest: str,
    *,
    make: Callable[[Session], Made],
    again: Callable[[Session, str], Made],
) -> Made:
    """What `make` makes, in one transaction with the note of it; without a key, a new one each time.

    Args:
        digest: equal for equal requests.
        again: the answer to a request with a key that has made this id before.

    Raises:
        Conflict: the key was used for another request.
    """

    def attempt() -> Made:
        with ctx.db.begin() as session:
            known = None if key is None else idempotency.recall(session, scope, key, digest)
            if known is not None:
                return again(session, known)
            made = make(session)
            if key is not None:
                idempotency.remember(session, scope, key, digest, made.id)
            return made

    try:
        return attempt()
    except IntegrityError:
        # Another request with this key, or the removal of what this one names, came first (PostgreSQL; SQLite has one
        # writer). The second look sees it.
        return attempt()


def digest_of(*parts: object) -> str:
    """Of what a request asks for."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def spent(message: str, **details: str) -> Conflict:
    """The answer where a key has made something that cannot be given again."""
    return Conflict(message, code="idempotency_key_spent", **details)
