"""Conditional requests (RFC 9110, section 13): `If-Match` for changes, `If-None-Match` for polls.

The versions themselves are the store's, which checks them with the row locked (`s2d.store.versions`).
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Depends, Header, Response

from s2d.errors import InvalidRequest
from s2d.store.versions import Expected

_TAGS = re.compile(r'(?:W/)?"[^"]*"')


async def if_match(
    if_match: Annotated[
        str | None, Header(max_length=1000, description="The ETag that the change is meant for; else it is a 412.")
    ] = None,
) -> Expected:
    """The versions that a change is meant for; None: any.

    Raises:
        InvalidRequest: not a list of ETags.
    """
    if if_match is None or if_match.strip() == "*":
        return None
    tags = _TAGS.findall(if_match)
    if not tags or re.sub(r"[\s,]", "", _TAGS.sub("", if_match)):
        raise InvalidRequest(f"If-Match {if_match!r} is not a list of ETags, each in double quotes.", param="if-match")
    # A weak tag says that much may have changed, so it never matches here.
    return frozenset(tag[1:-1] for tag in tags if not tag.startswith("W/"))


def etag(version: str) -> str:
    return f'"{version}"'


def is_known(version: str, if_none_match: str | None) -> bool:
    """Whether the client has this version already."""
    known = if_none_match or ""
    return known.strip() == "*" or etag(version) in (tag.removeprefix("W/") for tag in _TAGS.findall(known))


def as_known(body: bytes, version: str, if_none_match: str | None) -> Response:
    """The thing as JSON under its ETag, or a 304 where the client has it already."""
    headers = {"etag": etag(version), "cache-control": "no-cache"}
    if is_known(version, if_none_match):
        return Response(status_code=304, headers=headers)
    return Response(body, media_type="application/json", headers=headers)


#: What an endpoint that answers by `as_known` may also answer.
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is as the client has it."}}
IfMatch = Annotated[Expected, Depends(if_match)]
IfNoneMatch = Annotated[
    str | None, Header(max_length=1000, description="The ETag that the client has: then a 304 without a body.")
]
