"""Server-sent events, as much of them as this service sends (WHATWG HTML, section 9.2)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class ServerEvent:
    """`name` is "message" where the server gave none."""

    name: str
    data: str


def parse(lines: Iterable[str]) -> Iterator[ServerEvent | None]:
    """Events in order; None for a comment, which a server sends to show that it is still there."""
    name, data = "", list[str]()
    for line in lines:
        if not line:
            if data:
                yield ServerEvent(name or "message", "\n".join(data))
            name, data = "", []
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not field:
            yield None
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
