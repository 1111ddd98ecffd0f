"""Uploads: streamed to disk, checked row by row, kept with the report of what was rejected."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import IntegrityError

from s2d.data.ingest import Limits, ingest
from s2d.errors import InvalidRequest
from s2d.services.context import Context
from s2d.store import files
from s2d.store.database import db_now
from s2d.store.ids import new_id
from s2d.store.tables import FileRow

PURPOSES = ("fine-tune",)


def upload(ctx: Context, stream: BinaryIO, *, filename: str, purpose: str) -> FileRow:
    """Read the upload once, check it and keep it.

    Raises:
        InvalidRequest: unknown purpose.
        InvalidData, TooLarge: see `s2d.data.ingest.ingest`; nothing is kept.
    """
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}.", param="purpose")
    file_id = new_id("file")
    folder = ctx.settings.file_dir(file_id)
    folder.mkdir(parents=True)
    try:
        return _keep(ctx, stream, file_id, folder, filename, purpose)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _keep(ctx: Context, stream: BinaryIO, file_id: str, folder: Path, filename: str, purpose: str) -> FileRow:
    report = ingest(stream, folder / "rows.jsonl", Limits(max_bytes=ctx.settings.max_upload_bytes))
    stream.seek(0)
    with (folder / "upload.jsonl").open("wb") as kept:
        shutil.copyfileobj(stream, kept)
    row = FileRow(
        id=file_id,
        filename=Path(filename).name[:500] or "upload.jsonl",
        purpose=purpose,
        bytes=report.bytes,
        sha256=report.sha256,
        labeled=report.labeled,
        unlabeled=report.unlabeled,
        report=report.model_dump(mode="json"),
        created_at=db_now(),
    )
    with ctx.db.begin() as session:
        session.add(row)
        session.flush()
        session.refresh(row)
    return row


def get(ctx: Context, file_id: str, *, param: str = "file_id") -> FileRow:
    """Raises NotFound, which names `param` as the request's field at fault."""
    with ctx.db.read() as session:
        return files.get(session, file_id, param=param)


def list_page(ctx: Context, *, after: str | None, limit: int, newest_first: bool) -> tuple[Sequence[FileRow], bool]:
    with ctx.db.read() as session:
        return files.list_page(session, after=after, limit=limit, newest_first=newest_first)


def delete(ctx: Context, file_id: str) -> None:
    """Raises NotFound, and Conflict while a job names the file."""
    try:
        _forget(ctx, file_id)
    except IntegrityError:
        # A job was made at the same moment (PostgreSQL; SQLite has one writer): now it shows.
        _forget(ctx, file_id)
    # After the commit: a folder without a row is only waste, a row without its folder is a broken promise.
    shutil.rmtree(ctx.settings.file_dir(file_id))


def _forget(ctx: Context, file_id: str) -> None:
    with ctx.db.begin() as session:
        files.remove(session, file_id)


def content_path(ctx: Context, file_id: str) -> Path:
    """The upload as it came."""
    get(ctx, file_id)
    return ctx.settings.file_dir(file_id) / "upload.jsonl"


def rows_path(ctx: Context, file_id: str) -> Path:
    """The checked rows, in our own form."""
    get(ctx, file_id)
    return ctx.settings.file_dir(file_id) / "rows.jsonl"
