"""Students: which there are, and where their weights lie."""

from __future__ import annotations

from collections.abc import Sequence

from s2d.services.context import Context
from s2d.store import students
from s2d.store.tables import StudentRow


def list_all(ctx: Context) -> Sequence[StudentRow]:
    with ctx.db.read() as session:
        return students.list_all(session)


def get(ctx: Context, student_id: str) -> StudentRow:
    """Raises NotFound."""
    with ctx.db.read() as session:
        return students.get(session, student_id)
