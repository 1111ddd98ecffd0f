"""Whether what everything else rests on is there."""

from __future__ import annotations

from sqlalchemy import text

from s2d.services.context import Context


def check(ctx: Context) -> None:
    """Raises sqlalchemy.exc.OperationalError when the database does not answer."""
    with ctx.db.read() as session:
        session.execute(text("SELECT 1"))
