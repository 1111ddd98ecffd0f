"""Training files: OpenAI's File, with the report of what was read."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Form, Query, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from api.conditions import NOT_MODIFIED, IfMatch, IfNoneMatch, as_known, etag
from api.deps import ContextDep
from api.schemas import After, Id, IdempotencyKey, Limit, Page
from s2d.data.ingest import IngestReport
from s2d.services import files
from s2d.store.files import version
from s2d.store.tables import FileRow

router = APIRouter(prefix="/files", tags=["files"])


class FileObject(BaseModel):
    """An uploaded JSONL file of problems, with answers or without."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int = Field(description="Seconds since the epoch.")
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    report: IngestReport

    @classmethod
    def of(cls, row: FileRow) -> Self:
        return cls(
            id=row.id,
            bytes=row.bytes,
            created_at=int(row.created_at),
            filename=row.filename,
            purpose=row.purpose,
            report=IngestReport.model_validate(row.report),
        )


class FileDeleted(BaseModel):
    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


@router.post("")
def upload(
    ctx: ContextDep,
    file: UploadFile,
    response: Response,
    purpose: Annotated[str, Form()] = "fine-tune",
    idempotency_key: IdempotencyKey = None,
) -> FileObject:
    """Upload labels: one JSON object a line, with a problem (`problem`, `question`, `prompt` or chat `messages`) and,
    where there is one, its answer. Rows that cannot be used are left out and reported with line and reason."""
    # PostgreSQL takes no NUL in a text, and nobody's terminal wants the other control characters.
    filename = "".join(filter(str.isprintable, file.filename or ""))
    row = files.upload(ctx, file.file, filename=filename, purpose=purpose, idempotency_key=idempotency_key)
    response.headers["etag"] = etag(version(row))
    return FileObject.of(row)


@router.get("")
def list_files(
    ctx: ContextDep,
    after: After = None,
    limit: Limit = 100,
    order: Annotated[Literal["asc", "desc"], Query(description="By time of creation.")] = "desc",
) -> Page[FileObject]:
    """The files, newest first unless `order=asc`."""
    rows, has_more = files.list_page(ctx, after=after, limit=limit, newest_first=order == "desc")
    return Page[FileObject].of(rows, has_more, FileObject.of)


@router.get("/{file_id}", response_model=FileObject, responses=NOT_MODIFIED)
def retrieve(ctx: ContextDep, file_id: Id, if_none_match: IfNoneMatch = None) -> Response:
    """One file. Its ETag is the sha256 of its content."""
    row = files.get(ctx, file_id)
    return as_known(FileObject.of(row).model_dump_json().encode(), version(row), if_none_match)


@router.get("/{file_id}/content", response_class=FileResponse)
def content(ctx: ContextDep, file_id: Id) -> FileResponse:
    """The file as it was uploaded."""
    return FileResponse(
        files.content_path(ctx, file_id), media_type="application/jsonl", filename=files.get(ctx, file_id).filename
    )


@router.delete("/{file_id}")
def delete(ctx: ContextDep, file_id: Id, if_match: IfMatch) -> FileDeleted:
    """Delete a file that no job has used."""
    files.delete(ctx, file_id, if_match)
    return FileDeleted(id=file_id)
