"""Files and folders that are either whole or absent, also after the host lost its power.

Written beside their place, synced, renamed into it, and then the folder that holds them is synced: a rename alone may
come to the disk before what it names, or not at all. Does not promise that what was there before is kept.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Collection
from pathlib import Path

#: What a folder answers that may be entered but not read, or whose file system syncs no folders. It is left at that, as
#: PostgreSQL does: the files in it are synced all the same.
UNSYNCABLE = (errno.EACCES, errno.EBADF, errno.EINVAL)


def write_atomic(path: Path, text: str) -> None:
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    replace_durably(temporary, path)


def replace_folder(source: Path, target: Path) -> None:
    """Put a folder in the place of another, or of none: `target` is whole or absent at any moment."""
    make_durable(source)
    shutil.rmtree(target, ignore_errors=True)
    replace_durably(source, target)


def replace_durably(source: Path, target: Path) -> None:
    """Rename what was synced before."""
    source.replace(target)
    sync(target.parent)


def make_folder(folder: Path) -> None:
    """The folder is there, with those above it, and stays there."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync(folder.parent)


def make_durable(folder: Path, *, without: Collection[str] = ()) -> None:
    """Bring every file and folder below it to the disk, then itself; what links point to belongs to somebody else.

    Args:
        without: names in the folder that are left out.
    """
    # What others delete meanwhile needs it no more.
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if path.name in without or path.is_symlink():
                continue
            if path.is_dir():
                make_durable(path)
            elif path.is_file():
                sync(path)
    sync(folder)


def sync(path: Path) -> None:
    """Bring a file's content, or a folder's list of names, to the disk; nothing where it is gone."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except FileNotFoundError:
        pass
    except OSError as err:
        if err.errno not in UNSYNCABLE or not path.is_dir():
            raise
