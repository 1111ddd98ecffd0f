"""A question to the students of a job, and what the job's file says of it: its answer, and what the job used it for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from s2d.data.rows import Message, Row, find_row, prompt_id
from s2d.errors import NotFound
from s2d.services.context import Context
from s2d.store import ledger
from s2d.store.ledger import Use
from s2d.store.tables import JobRow

Turns = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Question:
    """What the students are asked. `row` is None for a question that the job's file does not have.

    `uses`: the stages that spent the row's label, in every arm.
    """

    messages: Turns
    row: Row | None = None
    uses: tuple[Use, ...] = ()

    @property
    def role(self) -> str | None:
        """What the job had the label for; an arm spends it for the same use as any other."""
        return self.uses[0].role if self.uses else None


def of_row(ctx: Context, job: JobRow, row: str | int) -> Question:
    """The prompt of a row of the job's file, by its id or by its line in the upload. Raises NotFound."""
    found = find_row(_rows(ctx, job), **({"line": row} if isinstance(row, int) else {"row_id": row}))
    if found is None:
        where = f"line {row}" if isinstance(row, int) else f"id {row!r}"
        raise NotFound(
            f"File {job.file_id!r} of job {job.id!r} has no row of {where}: blank, rejected and duplicate lines are "
            "none.",
            code="row_not_found",
            param="row",
        )
    messages = [message.model_dump() for message in found.messages]
    return Question(messages, found, _uses(ctx, job, found))


def of_messages(ctx: Context, job: JobRow, messages: Turns) -> Question:
    """These messages, which may be a row's prompt: equal as two labels of one file would be equal."""
    try:
        turns = [Message.model_validate(turn) for turn in messages]
    except ValidationError:
        # A conversation, or tools: rows have nothing but system and user turns.
        return Question(messages)
    found = find_row(_rows(ctx, job), row_id=prompt_id(turns))
    return Question(messages) if found is None else Question(messages, found, _uses(ctx, job, found))


def _rows(ctx: Context, job: JobRow) -> Path:
    return ctx.settings.file_dir(job.file_id) / "rows.jsonl"


def _uses(ctx: Context, job: JobRow, row: Row) -> tuple[Use, ...]:
    with ctx.db.read() as session:
        return tuple(ledger.uses(session, job.id, row.id))
