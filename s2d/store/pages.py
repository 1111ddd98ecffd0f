"""Cursor pages: ordered by creation and id, so that rows made meanwhile neither repeat nor hide others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sqlalchemy import Select, and_, or_, select
from sqlalchemy.orm import Session

from s2d.errors import InvalidRequest

Row = TypeVar("Row", bound=Any)


def page(
    session: Session,
    table: type[Row],
    *,
    after: str | None,
    limit: int,
    newest_first: bool = True,
    where: Sequence[Any] = (),
) -> tuple[Sequence[Row], bool]:
    """Up to `limit` rows after the row with id `after`, and whether there are more.

    Raises:
        InvalidRequest: `after` names no row.
    """
    query: Select[Any] = select(table).where(*where)
    if after is not None:
        query = query.where(_beyond(session, table, after, newest_first))
    created, ident = table.created_at, table.id
    order = (created.desc(), ident.desc()) if newest_first else (created, ident)
    rows = session.scalars(query.order_by(*order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def _beyond(session: Session, table: type[Row], after: str, newest_first: bool) -> Any:
    cursor = session.get(table, after)
    if cursor is None:
        raise InvalidRequest(f"The cursor {after!r} names nothing here.", code="invalid_cursor", param="after")
    created, ident = table.created_at, table.id
    if newest_first:
        return or_(created < cursor.created_at, and_(created == cursor.created_at, ident < after))
    return or_(created > cursor.created_at, and_(created == cursor.created_at, ident > after))
