"""Idempotency keys: the same key with the same request gives the same resource, with another request a refusal."""

from __future__ import annotations

from sqlalchemy.orm import Session

from s2d.errors import Conflict
from s2d.store.database import db_now
from s2d.store.tables import DEFAULT_TENANT, IdempotencyRow
from s2d.store.tenancy import tenant_of


def recall(session: Session, scope: str, key: str, request_hash: str) -> str | None:
    """The id made by the first request with this key; None when there was none.

    Raises:
        Conflict: the key was used for another request.
    """
    row = session.get(IdempotencyRow, (own_scope(session, scope), key))
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise Conflict(
            f"Idempotency-Key {key!r} was used for another request; use a new key for a new request.",
            code="idempotency_key_reused",
        )
    return row.resource_id


def remember(session: Session, scope: str, key: str, request_hash: str, resource_id: str) -> None:
    row = IdempotencyRow(
        scope=own_scope(session, scope),
        key=key,
        request_hash=request_hash,
        resource_id=resource_id,
        created_at=db_now(),
    )
    session.add(row)
    session.flush()


def own_scope(session: Session, scope: str) -> str:
    """Two tenants may choose the same key. The first tenant's scopes are named as before there were others."""
    tenant = tenant_of(session)
    return scope if tenant == DEFAULT_TENANT else f"{tenant}:{scope}"
