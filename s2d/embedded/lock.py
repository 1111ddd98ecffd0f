"""One service per state folder: a file lock, which the kernel releases however its holder ends."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from s2d.errors import Conflict
from s2d.settings import Settings


class AlreadyRunning(Conflict):
    """Another service uses this state folder."""

    code = "already_running"


@contextmanager
def state_lock(settings: Settings, url: str) -> Iterator[None]:
    """Hold the state folder, and say in it where the service answers.

    Raises:
        AlreadyRunning: somebody else holds it.
    """
    settings.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Not inherited by children, so the lock ends with this process and not with a child that outlives it.
    with os.fdopen(os.open(_path(settings), os.O_RDWR | os.O_CREAT, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise AlreadyRunning(_who(settings, file.read())) from err
        file.truncate()
        json.dump({"pid": os.getpid(), "url": url}, file)
        file.flush()
        yield


def running_url(settings: Settings) -> str | None:
    """Where the service of this state folder answers; None when none runs."""
    if not _path(settings).is_file():
        return None
    with _path(settings).open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            url: str | None = _read(file.read()).get("url")
            return url
    return None


def _path(settings: Settings) -> Path:
    return settings.state_dir / "up.lock"


def _read(text: str) -> dict[str, str]:
    # Empty between the lock and the write.
    return json.loads(text) if text else {}


def _who(settings: Settings, text: str) -> str:
    holder = _read(text)
    where = f" (process {holder['pid']}, {holder['url']})" if holder else ""
    return (
        f"s2d is already running on {settings.state_dir.absolute()}{where}. Use that one, stop it, or choose another "
        "--state-dir."
    )
