"""New ids: a prefix that names the kind and 96 random bits, so that they cannot be guessed or collide."""

from __future__ import annotations

import secrets


def new_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"
