"""Reads the event files that stages leave. A file may end in the middle of a line, and nothing is appended after that:
each attempt at a stage has a file of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from s2d.events import NewEvent, Origin
from s2d.runner.layout import JobLayout


class EventFile:
    """Gives the whole lines that were appended since the last look, each with where it ends.

    Args:
        offset: bytes of the file that were read by somebody before.
    """

    def __init__(self, root: Path, path: Path, offset: int = 0) -> None:
        self._name = str(path.relative_to(root))
        self._path = path
        self._offset = offset
        self._file: BinaryIO | None = None
        self._rest = b""

    def read(self) -> list[NewEvent]:
        if self._file is None:
            if not self._path.exists():
                return []
            self._file = self._path.open("rb")
            self._file.seek(self._offset)
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        return [self._event(line) for line in lines]

    def _event(self, line: bytes) -> NewEvent:
        self._offset += len(line) + 1
        event = NewEvent.model_validate(json.loads(line))
        return event.model_copy(update={"origin": Origin(file=self._name, offset=self._offset)})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def unread(layout: JobLayout, stages: Iterable[str], read: Origin | None) -> Iterator[list[NewEvent]]:
    """What the stages wrote after the event that was stored last, a file at a time, in the order of the job.

    Args:
        stages: ids in the order in which they run.
        read: where the last stored event ended; None: nothing was stored.
    """
    order = list(stages)

    def place(path: Path) -> tuple[int, int]:
        return order.index(path.parent.name), attempt_of(path)

    # Not looked for by name: a host without power may have lost the file of which the database has the events.
    last = (-1, 0) if read is None else place(layout.root / read.file)
    for path in (path for name in order for path in event_files(layout.stage(name))):
        if place(path) < last:
            continue
        file = EventFile(layout.root, path, read.offset if read is not None and place(path) == last else 0)
        if events := file.read():
            yield events
        file.close()


def event_files(folder: Path) -> list[Path]:
    """Of a stage's folder, in the order of the attempts."""
    return sorted(folder.glob("events-*.jsonl"), key=attempt_of)


def attempt_of(path: Path) -> int:
    """The number at the end of an event, task or log file's name."""
    return int(path.stem.rsplit("-", 1)[1])


def read_events(path: Path) -> list[dict[str, Any]]:
    """The whole events of a file; a last line that was cut short by a kill or a full disk is left out.

    Raises:
        ValueError: a line before the last is damaged.
    """
    *lines, rest = path.read_bytes().split(b"\n")
    events = [json.loads(line) for line in lines if line]
    try:
        return [*events, json.loads(rest)] if rest else events
    except ValueError:
        return events
