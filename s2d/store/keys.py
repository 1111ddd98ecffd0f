"""API keys: shown once, stored as a sha256. A key has 192 random bits, so a slow hash would protect nothing more."""

from __future__ import annotations

import hashlib
import secrets

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from s2d.store.database import db_now
from s2d.store.ids import new_id
from s2d.store.tables import ApiKeyRow


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def create(session: Session, name: str) -> tuple[ApiKeyRow, str]:
    """A new key: its row, and the secret, which is not stored and cannot be shown again."""
    secret = f"s2d-{secrets.token_urlsafe(24)}"
    row = ApiKeyRow(id=new_id("key"), name=name, key_hash=_digest(secret), created_at=db_now())
    session.add(row)
    session.flush()
    session.refresh(row)
    return row, secret


def adopt(session: Session, name: str, secret: str) -> None:
    """Accept a secret that was made elsewhere (the state folder's key file, after the database was replaced)."""
    if find(session, secret) is None:
        session.add(ApiKeyRow(id=new_id("key"), name=name, key_hash=_digest(secret), created_at=db_now()))


def find(session: Session, secret: str) -> ApiKeyRow | None:
    """The key that this secret opens, unless it was revoked."""
    query = select(ApiKeyRow).where(ApiKeyRow.key_hash == _digest(secret), ApiKeyRow.revoked_at.is_(None))
    return session.scalars(query).one_or_none()


def revoke(session: Session, key_id: str) -> bool:
    query = update(ApiKeyRow).where(ApiKeyRow.id == key_id, ApiKeyRow.revoked_at.is_(None))
    return session.execute(query.values(revoked_at=db_now())).rowcount == 1  # type: ignore[attr-defined]
