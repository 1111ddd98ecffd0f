"""What every service function needs: the settings and the database."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass

from s2d.atomic import replace_durably
from s2d.settings import Settings
from s2d.store import keys
from s2d.store.database import Database


@dataclass(frozen=True)
class Context:
    settings: Settings
    db: Database


def open_context(settings: Settings) -> Context:
    """Make the state folder (readable by its owner alone) and bring the database up to date."""
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    db = Database(settings.database)
    db.migrate()
    return Context(settings, db)


def first_key(ctx: Context) -> str:
    """An admin key of this state folder; made at the first start, kept in a file that only its owner can read.

    A new one takes the place of one that was revoked: who can read this file can write the database.
    """
    path = ctx.settings.key_file
    if path.exists():
        secret = path.read_text().strip()
        with ctx.db.begin() as session:
            # The file outlives a database that was replaced. An empty one, which an earlier version may have left on a
            # host that lost its power, opens nothing.
            if secret and keys.adopt(session, "first", secret):
                return secret
    with ctx.db.begin() as session:
        _, secret = keys.create(session, "first")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    replace_durably(temporary, path)
    return secret
