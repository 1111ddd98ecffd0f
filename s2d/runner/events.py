"""Reads the event file that a stage leaves, which may end in the middle of a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


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
