"""Versions of what is stored, by which a change can be confined to a thing as its caller has seen it (If-Match)."""

from __future__ import annotations

from s2d.errors import Changed

#: The versions in one of which a caller wants a thing to be still; None: in any.
Expected = frozenset[str] | None


def check(expected: Expected, version: str, what: str) -> None:
    """To be asked while the row is locked. `what` begins the message: the thing, and how it is now.

    Raises:
        Changed: it is in none of the versions that were expected.
    """
    if expected is not None and version not in expected:
        raise Changed(f"{what}, and not as If-Match says. Look again, then ask again.", param="if-match")
