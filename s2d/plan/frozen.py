"""The base of every document of this room."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable, and strict about unknown fields: a setting that would be ignored is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
