"""Rows about uploaded files; their content lies in the artifact folder."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from s2d.errors import Conflict, NotFound
from s2d.store.pages import page
from s2d.store.tables import FileRow, JobRow
from s2d.store.versions import Expected, check


def version(row: FileRow) -> str:
    """The hash of its content: a file is never changed, only deleted."""
    return row.sha256


def get(session: Session, file_id: str, *, param: str = "file_id", lock: bool = False) -> FileRow:
    """Raises NotFound, which names `param` as the request's field at fault."""
    row = session.get(FileRow, file_id, with_for_update=lock or None)
    if row is None:
        raise NotFound(f"There is no file {file_id!r}.", code="file_not_found", param=param)
    return row


def list_page(
    session: Session, *, after: str | None, limit: int, newest_first: bool = True
) -> tuple[Sequence[FileRow], bool]:
    return page(session, FileRow, after=after, limit=limit, newest_first=newest_first)


def remove(session: Session, file_id: str, expected: Expected = None) -> FileRow:
    """Raises NotFound, Changed, and Conflict while a job names the file: its provenance would be lost."""
    # Locked, so that of two removals at once the later one finds nothing.
    row = get(session, file_id, lock=True)
    check(expected, version(row), f"File {file_id!r} has the hash {row.sha256}")
    jobs = session.scalar(select(func.count()).select_from(JobRow).where(JobRow.file_id == file_id))
    if jobs:
        raise Conflict(f"File {file_id!r} is used by {jobs} job(s) and stays for their provenance.", code="file_in_use")
    session.execute(delete(FileRow).where(FileRow.id == file_id))
    return row
