"""Uploads: streamed to disk, checked row by row, kept with the report of what was rejected."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from s2d.atomic import make_durable, make_folder
from s2d.data.ingest import IngestReport, Limits, ingest
from s2d.errors import InvalidRequest
from s2d.services.context import Context
from s2d.services.once import digest_of, once, spent
from s2d.store import files
from s2d.store.database import db_now
from s2d.store.ids import new_id
from s2d.store.tables import FileRow
from s2d.store.versions import Expected

PURPOSES = ("fine-tune",)
_SCOPE = "files"


def upload(
    ctx: Context, stream: BinaryIO, *, filename: str, purpose: str, idempotency_key: str | None = None
) -> FileRow:
    """Read the upload once, check it and keep it. The same one with the same key gives the file of the first time.

    Raises:
        InvalidRequest: unknown purpose.
        InvalidData, TooLarge: see `s2d.data.ingest.ingest`; nothing is kept.
        Conflict: the key was used for another upload, or its file was deleted since; nothing is kept.
    """
    if purpose not in PURPOSES:
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}, not {purpose!r}.", param="purpose")
    file_id = new_id("file")
    folder = ctx.settings.file_dir(file_id)
    make_folder(folder)
    kept: FileRow | None = None
    try:
        report = _store(ctx, stream, folder)
        name = Path(filename).name[:500] or "upload.jsonl"
        kept = once(
            ctx,
            _SCOPE,
            idempotency_key,
            digest_of(name, purpose, report.sha256),
            make=partial(_add, file_id, name, purpose, report),
            again=_first,
        )
    finally:
        # Also where the file of the first time is the answer.
        if kept is None or kept.id != file_id:
            shutil.rmtree(folder)
    return kept


def _store(ctx: Context, stream: BinaryIO, folder: Path) -> IngestReport:
    report = ingest(stream, folder / "rows.jsonl", Limits(max_bytes=ctx.settings.max_upload_bytes))
    stream.seek(0)
    with (folder / "upload.jsonl").open("wb") as kept:
        shutil.copyfileobj(stream, kept)
    # Its row in the database is to name nothing that a host without power would lose.
    make_durable(folder)
    return report


def _add(file_id: str, filename: str, purpose: str, report: IngestReport, session: Session) -> FileRow:
    row = FileRow(
        id=file_id,
        filename=filename,
        purpose=purpose,
        bytes=report.bytes,
        sha256=report.sha256,
        labeled=report.labeled,
        unlabeled=report.unlabeled,
        report=report.model_dump(mode="json"),
        created_at=db_now(),
    )
    session.add(row)
    session.flush()
    session.refresh(row)
    return row


def _first(session: Session, file_id: str) -> FileRow:
    row = session.get(FileRow, file_id)
    if row is None:
        raise spent(
            f"This Idempotency-Key has made file {file_id!r}, which was deleted since. Take a new key.", id=file_id
        )
    return row


def get(ctx: Context, file_id: str, *, param: str = "file_id") -> FileRow:
    """Raises NotFound, which names `param` as the request's field at fault."""
    with ctx.db.read() as session:
        return files.get(session, file_id, param=param)


def list_page(ctx: Context, *, after: str | None, limit: int, newest_first: bool) -> tuple[Sequence[FileRow], bool]:
    with ctx.db.read() as session:
        return files.list_page(session, after=after, limit=limit, newest_first=newest_first)


def delete(ctx: Context, file_id: str, expected: Expected = None) -> None:
    """Raises NotFound, Changed, and Conflict while a job names the file."""
    try:
        _forget(ctx, file_id, expected)
    except IntegrityError:
        # A job was made at the same moment (PostgreSQL; SQLite has one writer): now it shows.
        _forget(ctx, file_id, expected)
    # After the commit: a folder without a row is only waste, a row without its folder is a broken promise.
    shutil.rmtree(ctx.settings.file_dir(file_id))


def _forget(ctx: Context, file_id: str, expected: Expected) -> None:
    with ctx.db.begin() as session:
        files.remove(session, file_id, expected)


def content_path(ctx: Context, file_id: str) -> Path:
    """The upload as it came."""
    get(ctx, file_id)
    return ctx.settings.file_dir(file_id) / "upload.jsonl"


def rows_path(ctx: Context, file_id: str) -> Path:
    """The checked rows, in our own form."""
    get(ctx, file_id)
    return ctx.settings.file_dir(file_id) / "rows.jsonl"
