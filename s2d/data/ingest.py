"""Turns an uploaded JSONL file into rows, once, streaming: what is unusable is reported with line and reason."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import BinaryIO

from pydantic import BaseModel, ConfigDict, Field

from s2d.atomic import make_folder
from s2d.data.columns import RowRejected, parse_line, parse_record
from s2d.data.index import PromptIndex
from s2d.data.lines import LineReader, describe_text
from s2d.data.rows import Row, atomic_writer, prompt_id, row_line
from s2d.errors import InvalidData, TooLarge

#: So many rejections are kept; all are counted.
KEPT_REJECTIONS = 100
_KEPT_COLUMNS = 100


class Limits(BaseModel):
    """What an upload may hold. Memory grows with `max_rows` (about 200 bytes each) and `max_line_bytes`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_bytes: int = Field(default=2 << 30, gt=0)
    max_line_bytes: int = Field(default=1 << 20, gt=0)
    max_rows: int = Field(default=2_000_000, gt=0)


class Rejection(BaseModel):
    """A line that was left out: its 1-based number and why."""

    model_config = ConfigDict(frozen=True)

    line: int
    reason: str


class IngestReport(BaseModel):
    """What became of an upload. Lines that are not blank = `rows` + `duplicates` + `rejected`."""

    model_config = ConfigDict(frozen=True)

    bytes: int
    sha256: str = Field(description="of the bytes as uploaded")
    rows: int
    labeled: int
    unlabeled: int
    duplicates: int
    rejected: int
    rejected_by_reason: dict[str, int]
    rejections: list[Rejection] = Field(description=f"the first {KEPT_REJECTIONS}")
    columns: list[str] = Field(description="column names seen, in lower case, sorted")


def ingest(stream: BinaryIO, out: Path, limits: Limits = Limits()) -> IngestReport:  # noqa: B008 - frozen
    """Reads the JSONL in `stream` and writes its usable rows, once each, to `out`, whole or not at all.

    InvalidData if no row is usable, if the file is of another format, or if one prompt comes with different answers;
    TooLarge beyond `limits`.
    """
    reader = LineReader(stream, limits.max_bytes, limits.max_line_bytes)
    intake = _Intake(limits)
    make_folder(out.parent)
    with tempfile.TemporaryFile(dir=out.parent) as accepted:
        for number, line in reader:
            intake.take(number, line, accepted)
        intake.refuse_unusable(reader.first_line)
        accepted.seek(0)
        with atomic_writer(out) as file:
            file.writelines(line for number, line in enumerate(accepted) if number not in intake.index.superseded)
    return intake.report(reader)


class _Intake:
    """What is known of the file so far."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.index = PromptIndex()
        self._counts: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._rejections: list[Rejection] = []
        self._columns: set[str] = set()

    def take(self, number: int, line: bytes | None, accepted: BinaryIO) -> None:
        """Writes the row on `line` to `accepted`, or notes why not. `line` is None where it was too long."""
        if line is not None and not line.strip():
            return
        try:
            row = self._row(number, line)
        except RowRejected as rejected:
            self._reasons[rejected.kind] += 1
            if len(self._rejections) < KEPT_REJECTIONS:
                self._rejections.append(Rejection(line=number, reason=rejected.reason))
            return
        verdict = self.index.add(row.id, row.answer, number)
        self._counts[verdict] += 1
        if verdict == "new":
            self._counts["labeled"] += row.answer is not None
            accepted.write(row_line(row))
            if self._counts["new"] > self._limits.max_rows:
                raise TooLarge(
                    f"the file has more than {self._limits.max_rows:,} rows: upload fewer, or raise the limit",
                    param="file",
                )

    def refuse_unusable(self, first_line: bytes) -> None:
        """InvalidData if the file as a whole cannot be used."""
        if self.index.n_conflicts:
            lines = ", ".join(f"{first} and {second}" for first, second in self.index.conflicts)
            raise InvalidData(
                f"{self.index.n_conflicts} rows give another answer to a problem than an earlier row, first on lines "
                f"{lines}: keep one answer for each problem",
                param="file",
                conflicts=self.index.conflicts,
            )
        if not self._counts["new"]:
            raise InvalidData(
                self._why_nothing(first_line),
                param="file",
                rejected=self._reasons.total(),
                rejections=[rejection.model_dump() for rejection in self._rejections],
            )

    def report(self, reader: LineReader) -> IngestReport:
        superseded = len(self.index.superseded)
        rows, labeled = self._counts["new"] - superseded, self._counts["labeled"]
        return IngestReport(
            bytes=reader.bytes,
            sha256=reader.sha256,
            rows=rows,
            labeled=labeled,
            unlabeled=rows - labeled,
            duplicates=self._counts["duplicate"] + superseded,
            rejected=self._reasons.total(),
            rejected_by_reason=dict(self._reasons.most_common()),
            rejections=self._rejections,
            columns=sorted(self._columns),
        )

    def _row(self, number: int, line: bytes | None) -> Row:
        if line is None:
            raise RowRejected("line too long", f"more than {self._limits.max_line_bytes:,} bytes")
        record = parse_line(line)
        self._note_columns(record)
        messages, answer = parse_record(record)
        return Row(id=prompt_id(messages), messages=messages, answer=answer, line=number)

    def _note_columns(self, record: dict[str, object]) -> None:
        if not self._columns.issuperset(record):
            names = {name[:100].encode(errors="replace").decode() for name in record}
            self._columns.update(sorted(names - self._columns)[: _KEPT_COLUMNS - len(self._columns)])

    def _why_nothing(self, first_line: bytes) -> str:
        if not first_line:
            return "the file is empty: upload JSONL, one object with a problem and its answer per line"
        other = describe_text(first_line)
        if other:
            return f"the file is not JSONL but looks like {other}"
        first = self._rejections[0]
        return f"none of the {self._reasons.total():,} rows is usable; the first, line {first.line}: {first.reason}"
