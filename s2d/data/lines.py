"""Reads the lines of an upload in bounded memory, and says what a file that is no JSONL seems to be."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

from s2d.errors import InvalidData, TooLarge

_BOM = b"\xef\xbb\xbf"

_BINARY = {
    b"\x1f\x8b": "a gzip file: decompress it first",
    b"PK\x03\x04": "a zip file (or a spreadsheet): unpack it, or export it as JSONL",
    b"PAR1": "a Parquet file: export it as JSONL, with pandas: df.to_json(path, orient='records', lines=True)",
    b"\x28\xb5\x2f\xfd": "a zstd file: decompress it first",
    b"BZh": "a bzip2 file: decompress it first",
    b"\xfd7zXZ": "an xz file: decompress it first",
    b"ARROW1": "an Arrow file: export it as JSONL",
    b"%PDF": "a PDF: extract the problems into JSONL",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8",
}


class LineReader:
    """Iterates (1-based number, line) over a stream, hashing and counting every byte.

    A line longer than `max_line_bytes` is given as None and is never held whole. InvalidData at once on a file of
    another format, TooLarge after `max_bytes`.
    """

    def __init__(self, stream: BinaryIO, max_bytes: int, max_line_bytes: int) -> None:
        self._stream = stream
        self._max_bytes = max_bytes
        self._max_line_bytes = max_line_bytes
        self._sha256 = hashlib.sha256()
        self.bytes = 0
        self.first_line = b""  #: the first line that is not blank, cut at 200 bytes

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def __iter__(self) -> Iterator[tuple[int, bytes | None]]:
        number = 0
        while chunk := self._read():
            number += 1
            if number == 1:
                chunk = chunk.removeprefix(_BOM)
            if not self.first_line:
                self.first_line = chunk.strip()[:200]
                _refuse_other_formats(self.first_line)
            if chunk.endswith(b"\n") or len(chunk) <= self._max_line_bytes:
                yield number, chunk
            else:
                self._skip_line()
                yield number, None

    def _read(self) -> bytes:
        chunk = self._stream.readline(self._max_line_bytes + 1)
        self._sha256.update(chunk)
        self.bytes += len(chunk)
        if self.bytes > self._max_bytes:
            raise TooLarge(
                f"the file is larger than {self._max_bytes:,} bytes: upload fewer rows, or raise the limit",
                param="file",
            )
        return chunk

    def _skip_line(self) -> None:
        while (chunk := self._read()) and not chunk.endswith(b"\n"):
            pass


def _refuse_other_formats(head: bytes) -> None:
    """InvalidData if no file that starts so can be JSONL, though one of its lines might happen to be a row."""
    looks_like = next((advice for magic, advice in _BINARY.items() if head.startswith(magic)), None)
    if head == b"[" or head.startswith(b"[{"):
        looks_like = "a JSON array: write one object per line, without the brackets and the commas between them"
    if head == b"{":
        looks_like = "pretty-printed JSON: write each object on one line"
    if looks_like:
        raise InvalidData(f"the file is not JSONL but looks like {looks_like}", param="file")


def describe_text(first_line: bytes) -> str | None:
    """What a text file without a single usable row seems to be, from its first line; None if it may be JSONL."""
    if first_line.startswith((b"{", b"[")):
        return None
    if first_line.startswith(b"<"):
        return "HTML or XML: upload the JSONL itself"
    for delimiter, name in ((b",", "a CSV file"), (b"\t", "a tab-separated file"), (b";", "a CSV file")):
        if delimiter in first_line:
            head = first_line.decode(errors="replace")[:60]
            return f"{name} (its first line is {head!r}): convert it to JSONL, one object per line"
    return None
