"""API keys: shown once, stored as a sha256. A key has 192 random bits, so a slow hash would protect nothing more."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from sqlalchemy import select
from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.store.database import db_now
from s2d.store.ids import new_id
from s2d.store.pages import page
from s2d.store.tables import DEFAULT_TENANT, ApiKeyRow
from s2d.store.versions import Expected, check

Scope = Literal["admin", "train", "infer", "read"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


def digest(secret: str) -> str:
    """What is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    session: Session,
    name: str,
    *,
    tenant: str = DEFAULT_TENANT,
    scopes: Iterable[Scope] = ("admin",),
    requests_per_min: int | None = None,
) -> tuple[ApiKeyRow, str]:
    """A new key: its row, and the secret, which is not stored and cannot be shown again."""
    secret = f"s2d-{secrets.token_urlsafe(24)}"
    wanted = set(scopes)
    row = ApiKeyRow(
        id=new_id("key"),
        name=name,
        key_hash=digest(secret),
        tenant=tenant,
        scopes=" ".join(scope for scope in SCOPES if scope in wanted),
        requests_per_min=requests_per_min,
        created_at=db_now(),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, secret


def adopt(session: Session, name: str, secret: str) -> bool:
    """Accept a secret that was made elsewhere (the state folder's key file, after the database was replaced).

    Returns:
        Whether it opens the service now; not if it was revoked.
    """
    row = session.scalars(select(ApiKeyRow).where(ApiKeyRow.key_hash == digest(secret))).one_or_none()
    if row is None:
        session.add(ApiKeyRow(id=new_id("key"), name=name, key_hash=digest(secret), created_at=db_now()))
    return row is None or row.revoked_at is None


def find(session: Session, secret: str) -> ApiKeyRow | None:
    """The key that this secret opens, unless it was revoked."""
    query = select(ApiKeyRow).where(ApiKeyRow.key_hash == digest(secret), ApiKeyRow.revoked_at.is_(None))
    return session.scalars(query).one_or_none()


def version(row: ApiKeyRow) -> str:
    """Nothing of a key changes but that it is revoked."""
    return "valid" if row.revoked_at is None else "revoked"


def get(session: Session, key_id: str, *, lock: bool = False) -> ApiKeyRow:
    """The key of whatever tenant, revoked or not. Raises NotFound."""
    row = session.get(ApiKeyRow, key_id, with_for_update=lock or None)
    if row is None:
        raise NotFound(f"There is no API key {key_id!r}.", code="key_not_found", param="key_id")
    return row


def list_page(session: Session, *, after: str | None, limit: int) -> tuple[Sequence[ApiKeyRow], bool]:
    """The keys of every tenant, the revoked ones too."""
    return page(session, ApiKeyRow, after=after, limit=limit)


def revoke(session: Session, key_id: str, expected: Expected = None) -> ApiKeyRow:
    """From now on the key opens nothing. Again changes nothing.

    Raises:
        NotFound: no such key.
        Changed: it is in none of the versions that were expected.
    """
    row = get(session, key_id, lock=True)
    check(expected, version(row), f"API key {key_id!r} is {version(row)} now")
    if row.revoked_at is None:
        row.revoked_at = db_now()
        session.flush()
        session.refresh(row)
    return row
