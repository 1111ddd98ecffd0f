"""A real PostgreSQL server for the tests, from the programs that Debian installs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def programs() -> Path | None:
    """The folder with initdb and postgres; Debian keeps them off PATH."""
    found = shutil.which("initdb")
    folders = (
        [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    return next((folder for folder in folders if (folder / "initdb").exists()), None)


@contextmanager
def server(binaries: Path) -> Iterator[str]:
    """A cluster on a unix socket in its own folder; yields `postgresql+psycopg://…/` without a database name."""
    # PostgreSQL refuses to run as root.
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    root = Path(tempfile.mkdtemp(prefix="s2d-pg-"))
    try:
        if user:
            shutil.chown(root, "nobody", "nogroup")
        data = root / "data"
        initdb = [binaries / "initdb", "-D", data, "-U", "s2d", "--auth=trust", "--no-sync", "-E", "UTF8"]
        subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, cwd="/", **user)
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={root}", "-c", "fsync=off"]
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, cwd="/", **user
        )
        try:
            _wait(binaries, root)
            yield f"postgresql+psycopg://s2d@/{{name}}?host={root}"
        finally:
            # A fast shutdown (SIGINT): a test that failed may have left a connection open.
            process.send_signal(signal.SIGINT)
            process.wait(30)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _wait(binaries: Path, root: Path) -> None:
    deadline = time.monotonic() + 30
    while subprocess.run([binaries / "pg_isready", "-q", "-h", root], check=False).returncode:
        assert time.monotonic() < deadline, "PostgreSQL did not come up"
        time.sleep(0.1)
