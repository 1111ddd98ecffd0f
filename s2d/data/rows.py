"""The row that every later stage reads, and how files of rows are read and written."""

from __future__ import annotations

import hashlib
import os
import unicodedata
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from s2d.atomic import make_folder, replace_durably
from s2d.errors import InvalidData

#: Soft hyphen, zero-width space, word joiner, byte order mark: nobody sees them, so they make no other problem.
_INVISIBLE = str.maketrans("", "", "\u00ad\u200b\u2060\ufeff")


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    role: Literal["system", "user"]
    content: str


class Row(BaseModel):
    """A problem, with its label or without.

    `id` is the label's identity, equal across files (see `prompt_id`); `answer` is the final answer only, None where
    the problem is unlabeled; `line` is the 1-based line in the upload.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern="^[0-9a-f]{32}$")
    messages: list[Message]
    answer: str | None = None
    line: int = Field(ge=1)

    @field_validator("messages")
    @classmethod
    def _ends_in_user_turn(cls, messages: list[Message]) -> list[Message]:
        if not messages or messages[-1].role != "user":
            raise ValueError("the messages must end in a user turn")
        return messages


def prompt_id(messages: Iterable[Message]) -> str:
    """32 hex digits of the prompt: all turns, in Unicode NFC, every run of white space one space, nothing invisible."""
    digest = hashlib.blake2b(digest_size=16)
    for message in messages:
        text = message.content
        if not text.isascii():
            text = unicodedata.normalize("NFC", text.translate(_INVISIBLE))
        # The separators are control characters, which `split` has removed from the text.
        digest.update(f"{message.role}\x1f{' '.join(text.split())}\x1e".encode())
    return digest.hexdigest()


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file that `write_rows` or `ingest` wrote, in order. InvalidData on a line that is no row."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield parse_row(line, f"{path.name}, line {number}")


def parse_row(line: bytes, where: str) -> Row:
    """One line of a file of rows. InvalidData, naming `where`, if it is not a row."""
    try:
        return Row.model_validate_json(line)
    except ValidationError as error:
        raise InvalidData(
            f"{where}: not a row ({error.errors()[0]['msg']}); ingest the original file again", param="file"
        ) from error


def find_row(path: Path, *, row_id: str | None = None, line: int | None = None) -> Row | None:
    """The row of this id, or of this line of the upload, in a file that `ingest` wrote; None when it has none."""
    begin = f'{{"id":"{row_id or ""}'.encode()
    end = b"}\n" if line is None else f',"line":{line}}}\n'.encode()
    with path.open("rb") as file:
        # Told by how a row's line begins and ends: reading a million rows as JSON takes ten times as long.
        found = next((text for text in file if text.startswith(begin) and text.endswith(end)), None)
    return None if found is None else parse_row(found, path.name)


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes one row per line; `path` appears whole or not at all."""
    with atomic_writer(path) as file:
        for row in rows:
            file.write(row_line(row))


def row_line(row: Row) -> bytes:
    """The row as its line in a file, newline included."""
    return row.model_dump_json().encode() + b"\n"


@contextmanager
def atomic_writer(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that is renamed to `path` on success and removed on failure; parents are made."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        replace_durably(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
