"""API keys: who a request comes from, what it may do, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from sqlalchemy.orm import Session

from s2d.errors import Conflict, NotAuthenticated
from s2d.recent import Recent
from s2d.services.context import Context
from s2d.services.once import digest_of, once, spent
from s2d.store import keys
from s2d.store.database import DATABASE_AWAY
from s2d.store.keys import Scope
from s2d.store.tables import DEFAULT_TENANT, ApiKeyRow
from s2d.store.versions import Expected

_SCOPE = "keys"
#: What a scope allows beside what its name says.
IMPLIED: dict[Scope, frozenset[Scope]] = {
    "admin": frozenset({"admin", "train", "infer", "read"}),
    "train": frozenset({"train", "read"}),
    "infer": frozenset({"infer"}),
    "read": frozenset({"read"}),
}
#: A key's answer is believed for so long, so that most requests ask no database; a revoked key works on until then.
TRUST_S = 5.0
#: For so long while the database is away: what needs no database (running students, /metrics) goes on without it.
TRUST_ALONE_S = 300.0


@dataclass(frozen=True)
class Caller:
    """Who sent a request."""

    key_id: str
    tenant: str
    scopes: frozenset[Scope]
    requests_per_min: int | None

    @classmethod
    def of(cls, row: ApiKeyRow) -> Caller:
        named = [scope for scope in keys.SCOPES if scope in row.scopes.split()]
        return cls(row.id, row.tenant, frozenset().union(*(IMPLIED[scope] for scope in named)), row.requests_per_min)


def authenticate(ctx: Context, secret: str | None) -> Caller:
    """Whose key a request came with.

    Raises:
        NotAuthenticated: none, or one that is unknown or revoked.
    """
    if not secret:
        raise NotAuthenticated(
            "No API key. Send 'Authorization: Bearer KEY'; `s2d up` says where the first key is.",
            code="missing_api_key",
        )
    with ctx.db.read() as session:
        row = keys.find(session, secret)
    if row is None:
        raise NotAuthenticated("The API key is unknown or was revoked.")
    return Caller.of(row)


class Callers:
    """The callers of late, so that a request with a known key waits for no database. Belongs to one event loop.

    It remembers good keys only: a stranger's guesses take no memory.
    """

    def __init__(self) -> None:
        self._recent = Recent[str, Caller]()

    async def of(self, ctx: Context, secret: str | None) -> Caller:
        """Whose key it is. Raises as `authenticate` does; a database that is away, only for a key not used of late."""
        key = keys.digest(secret or "")
        try:
            return await self._recent.get(key, TRUST_S, lambda: asyncio.to_thread(authenticate, ctx, secret))
        except NotAuthenticated:
            self._recent.forget(key)
            raise
        except DATABASE_AWAY:
            known = self._recent.known(key, TRUST_ALONE_S)
            if known is None:
                raise
            return known

    def forget(self) -> None:
        """Ask the database for everybody again: a key was revoked through this process."""
        self._recent.forget_all()


class NewKey(NamedTuple):
    row: ApiKeyRow
    secret: str

    @property
    def id(self) -> str:
        return self.row.id


def create(
    ctx: Context,
    *,
    name: str,
    tenant: str = DEFAULT_TENANT,
    scopes: Sequence[Scope],
    requests_per_min: int | None = None,
    idempotency_key: str | None = None,
) -> NewKey:
    """A new key, and its secret, which is shown this once.

    Raises:
        Conflict: the idempotency key has made a key before. Its secret was in the first answer and is not known here,
            so a repetition can give neither it nor, silently, a second key.
    """

    def make(session: Session) -> NewKey:
        made = keys.create(session, name, tenant=tenant, scopes=scopes, requests_per_min=requests_per_min)
        return NewKey(*made)

    digest = digest_of(name, tenant, sorted(set(scopes)), requests_per_min)
    return once(ctx, _SCOPE, idempotency_key, digest, make=make, again=_made_before)


def _made_before(_: Session, key_id: str) -> NoReturn:
    raise spent(
        f"This Idempotency-Key has made the API key {key_id!r} already. Its secret was in the first answer and is not "
        f"stored. If that answer was lost, revoke the key (DELETE /v1/keys/{key_id}) and make another one with a new "
        "Idempotency-Key.",
        id=key_id,
    )


def get(ctx: Context, key_id: str) -> ApiKeyRow:
    """A key of any tenant. Raises NotFound."""
    with ctx.db.read() as session:
        return keys.get(session, key_id)


def list_page(ctx: Context, *, after: str | None, limit: int) -> tuple[Sequence[ApiKeyRow], bool]:
    """Newest first, of every tenant."""
    with ctx.db.read() as session:
        return keys.list_page(session, after=after, limit=limit)


def revoke(ctx: Context, key_id: str, *, caller: Caller, expected: Expected = None) -> ApiKeyRow:
    """The key opens nothing any more, in other API processes after `TRUST_S` at the latest.

    Raises:
        NotFound: no such key.
        Changed: it is in none of the versions that were expected.
        Conflict: it is the caller's own, so that nobody locks the last operator out by mistake.
    """
    if key_id == caller.key_id:
        raise Conflict("A key cannot revoke itself: use another admin key.", code="own_key")
    with ctx.db.begin() as session:
        return keys.revoke(session, key_id, expected)
