"""Whether what everything else rests on is there, and the figures by which it is watched."""

from __future__ import annotations

from sqlalchemy import text

from s2d.services.context import Context
from s2d.store import figures
from s2d.store.figures import Figures


def check(ctx: Context) -> None:
    """Raises sqlalchemy.exc.OperationalError when the database does not answer."""
    with ctx.db.read() as session:
        session.execute(text("SELECT 1"))


def service_figures(ctx: Context) -> Figures:
    """Of all tenants together. Raises sqlalchemy.exc.SQLAlchemyError when the database cannot tell them."""
    with ctx.db.read() as session:
        return figures.read(session)
