"""The label ledger in a job's folder: which arm and which stage each label was spent by.

An arm is an account of its own: a control spends the same labels as the workflow, in its place. Within one arm a label
is spent once. Appended to before a stage starts, never rewritten; the database holds the same under a primary key.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from s2d.errors import Conflict
from s2d.plan.graph import Account


class Spent(BaseModel):
    """One label, one use."""

    model_config = ConfigDict(frozen=True)

    label: str
    role: str
    arm: str
    stage: str


class Ledger:
    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> list[Spent]:
        """Every entry, oldest first. A line that was cut short by a kill is not there: its stage had not started."""
        if not self._path.exists():
            return []
        whole, _, _ = self._path.read_text().rpartition("\n")
        return [Spent.model_validate_json(line) for line in whole.splitlines()]

    def spend(self, account: Account, role: str, labels: Sequence[str]) -> None:
        """Write these labels down for the account; again for the same stage changes nothing.

        Raises:
            Conflict: code "label_spent"; another stage of the arm has a label already.
        """
        owner = {entry.label: entry.stage for entry in self.read() if entry.arm == account.arm}
        for label in labels:
            if owner.get(label, account.stage) != account.stage:
                raise Conflict(
                    f"Label {label} was spent by {owner[label]} and cannot be spent by {account.stage}.",
                    code="label_spent",
                )
        self._append([Spent(label=label, role=role, **account._asdict()) for label in labels if label not in owner])

    def _append(self, entries: Sequence[Spent]) -> None:
        lines = "".join(json.dumps(entry.model_dump()) + "\n" for entry in entries)
        with self._path.open("a+b") as file:
            file.seek(0)
            # What a kill has cut short goes: its labels are among those that are written now.
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(lines.encode())
