"""Where everything of one job lies. One folder holds all of it, so that it can be moved, kept or deleted as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2d.plan.document import ModelRole, StageKind


@dataclass(frozen=True)
class JobLayout:
    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def data(self) -> Path:
        """`<role>.jsonl` per use of the rows, and `split.json`."""
        return self.root / "data"

    def stage(self, kind: StageKind) -> Path:
        return self.root / "stages" / kind

    def result(self, kind: StageKind) -> Path:
        """Written last: a stage is done when its result is there."""
        return self.stage(kind) / "result.json"

    def model(self, role: ModelRole) -> Path:
        return self.root / "models" / role

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def heartbeat(self, epoch: int) -> Path:
        """Touched by the supervisor of this epoch after each lease renewal; a stage that sees it grow old ends itself.

        One file per claim: a stage must not take the next supervisor's touches for its own's.
        """
        return self.root / f"heartbeat-{epoch}"
