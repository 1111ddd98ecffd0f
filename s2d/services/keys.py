"""API keys."""

from __future__ import annotations

from s2d.errors import NotAuthenticated
from s2d.services.context import Context
from s2d.store import keys
from s2d.store.tables import ApiKeyRow


def authenticate(ctx: Context, secret: str | None) -> ApiKeyRow:
    """The key that a request came with.

    Raises:
        NotAuthenticated: none, or one that is unknown or revoked.
    """
    if not secret:
        raise NotAuthenticated(
            "No API key. Send 'Authorization: Bearer KEY'; `s2d up` says where the first key is.",
            code="missing_api_key",
        )
    with ctx.db.read() as session:
        row = keys.find(session, secret)
    if row is None:
        raise NotAuthenticated("The API key is unknown or was revoked.")
    return row
