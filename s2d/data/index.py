"""Which prompts were seen, with which answer and where: finds duplicates and conflicts in memory per row, not text."""

from __future__ import annotations

from array import array
from typing import Literal

from s2d.data.answers import answer_key

Verdict = Literal["new", "duplicate", "conflict"]

#: So many conflicts are kept for the message.
KEPT_CONFLICTS = 5


class PromptIndex:
    """Decides for each row, in file order, whether it is kept. About 200 bytes a row.

    Kept rows are numbered 0, 1, …; `superseded` holds the numbers of unlabeled rows whose prompt came again with a
    label. Answers are compared by a 64-bit hash of their normal form.
    """

    def __init__(self) -> None:
        self._number: dict[bytes, int] = {}
        self._lines = array("Q")
        self._keys = array("Q")  # 0: unlabeled
        self.superseded: set[int] = set()
        self.conflicts: list[tuple[int, int]] = []  #: the first ones: (line of the row kept, line of the other)
        self.n_conflicts = 0

    def add(self, row_id: str, answer: str | None, line: int) -> Verdict:
        """What to do with the row: keep it, drop it, or (once the file is read) refuse the file."""
        key = answer_key(answer) if answer is not None else 0
        seen = self._number.get(bytes.fromhex(row_id))
        if seen is None or (key and not self._keys[seen]):
            if seen is not None:
                self.superseded.add(seen)
            self._number[bytes.fromhex(row_id)] = len(self._lines)
            self._lines.append(line)
            self._keys.append(key)
            return "new"
        if not key or key == self._keys[seen]:
            return "duplicate"
        self.n_conflicts += 1
        if len(self.conflicts) < KEPT_CONFLICTS:
            self.conflicts.append((self._lines[seen], line))
        return "conflict"
