"""The stored teacher rollouts: generated once, in parts that survive a kill, kept with where they came from.

A part is one file, renamed into place; each has its own seed, so a part made after a restart equals the one that
would have been made without it. `provenance.json` is written last: the store counts when it is there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from s2d.atomic import write_atomic


class StoredRollout(BaseModel):
    """A teacher's completion (token ids) of the prompt of row `row_id`."""

    model_config = ConfigDict(frozen=True)

    row_id: str
    ids: list[int]
    truncated: bool


class RolloutStore:
    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, part: int) -> bool:
        return self._path(part).exists()

    def write(self, part: int, rollouts: list[StoredRollout]) -> None:
        write_atomic(self._path(part), "".join(one.model_dump_json() + "\n" for one in rollouts))

    def read(self) -> Iterator[StoredRollout]:
        """All rollouts, in the order in which their prompts were given."""
        for path in sorted(self.root.glob("part-*.jsonl")):
            with path.open(encoding="utf-8") as file:
                yield from (StoredRollout.model_validate_json(line) for line in file)

    def seal(self, **provenance: Any) -> dict[str, Any]:
        """Write `provenance.json`: what was given, the count and the hash of all parts."""
        digest, count = hashlib.sha256(), 0
        for path in sorted(self.root.glob("part-*.jsonl")):
            content = path.read_bytes()
            digest.update(content)
            count += content.count(b"\n")
        document = {**provenance, "rollouts": count, "sha256": digest.hexdigest()}
        write_atomic(self.root / "provenance.json", json.dumps(document, indent=1))
        return document

    def _path(self, part: int) -> Path:
        return self.root / f"part-{part:06d}.jsonl"
