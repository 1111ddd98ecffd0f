"""Students: which there are, and where their weights lie."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from s2d.services.context import Context
from s2d.store import students
from s2d.store.tables import StudentRow
from s2d.store.versions import Expected


def list_all(ctx: Context) -> Sequence[StudentRow]:
    with ctx.db.read() as session:
        return students.list_all(session)


def get(ctx: Context, student_id: str) -> StudentRow:
    """Raises NotFound."""
    with ctx.db.read() as session:
        return students.get(session, student_id)


def delete(ctx: Context, student_id: str, expected: Expected = None) -> None:
    """No longer a model to ask. Its weights go too where they are its job's own and no other student has them.

    A request that is being answered is answered to its end: its server has the weights in memory.

    Raises:
        NotFound, Changed
    """
    with ctx.db.begin() as session:
        row, alone = students.remove(session, student_id, expected)
    # After the commit: weights without a row are only waste, a row without its weights is a broken promise.
    folder = Path(row.path)
    if alone and _made_by_job(ctx, row):
        # Renamed first, so that a server that is just starting meets the whole model or none.
        hidden = folder.with_name(f".deleted-{uuid.uuid4().hex}")
        folder.rename(hidden)
        shutil.rmtree(hidden)


def _made_by_job(ctx: Context, row: StudentRow) -> bool:
    """A base student may lie anywhere, and is the operator's."""
    folder = Path(row.path)
    inside = folder.resolve().parent == (ctx.settings.job_dir(row.job_id) / "models").resolve()
    return inside and folder.is_dir() and not folder.is_symlink()
