"""What several resources share: ids, cursor pages, and which representation the client wants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Generic, Literal, Self, TypeVar

from fastapi import Header, Query
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from s2d.store.tables import ApiKeyRow, FileRow, JobRow, PlanRow

# No control characters: PostgreSQL takes no NUL in a text.
Id = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Limit = Annotated[int, Query(ge=1, le=1000, description="Most items on the page.")]
After = Annotated[Id | None, Query(description="The last id of the page before.")]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="The same key with the same body makes one thing, however often it is sent. With another body, or "
        "where the first answer cannot be given again, it is a 409.",
    ),
]
Format = Annotated[
    Literal["json", "markdown"] | None, Query(description="`markdown` does the same as `Accept: text/markdown`.")
]
# OpenAPI knows this header by the responses' media types.
Accept = Annotated[str, Header(include_in_schema=False)]

MARKDOWN = "text/markdown; charset=utf-8"


class RequestBody(BaseModel):
    """A field that would be ignored is an error."""

    model_config = ConfigDict(extra="forbid")


Row = TypeVar("Row", FileRow, PlanRow, JobRow, ApiKeyRow)
Item = TypeVar("Item")


class Page(BaseModel, Generic[Item]):
    """Newest first. The next page is the one `after` this page's `last_id`, while `has_more`."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool = Field(description="Whether there is another page.")
    first_id: str | None
    last_id: str | None

    @classmethod
    def of(cls, rows: Sequence[Row], has_more: bool, convert: Callable[[Row], Item]) -> Self:
        first, last = (rows[0].id, rows[-1].id) if rows else (None, None)
        return cls(data=[convert(row) for row in rows], has_more=has_more, first_id=first, last_id=last)


def wants_markdown(chosen: Literal["json", "markdown"] | None, accept: str) -> bool:
    """The query decides; without it the Accept header does."""
    return chosen == "markdown" if chosen else "text/markdown" in accept
