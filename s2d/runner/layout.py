"""Where everything of one job lies. One folder holds all of it, so that it can be moved, kept or deleted as one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from s2d.plan.document import PromptPool


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

    def prompts(self, pool: PromptPool) -> Path:
        """The rows whose prompts the bridge uses; their answers are not read."""
        return self.data / ("prompts.jsonl" if pool == "bridge" else "teacher_rl.jsonl")

    def stage(self, name: str) -> Path:
        return self.root / "stages" / name

    def result(self, name: str) -> Path:
        """Written last: a stage is done when its result is there."""
        return self.stage(name) / "result.json"

    def micro_batch(self, name: str) -> Path:
        """Holds a stage's smaller micro-batch once it ran out of memory with the plan's."""
        return self.stage(name) / "micro_batch"

    def model(self, name: str) -> Path:
        return self.root / "models" / name

    def rollouts(self, stage: str) -> Path:
        """What a stage of the kind `teacher_rollouts` has stored."""
        return self.root / "rollouts" / stage

    @property
    def ledger(self) -> Path:
        """Every label, the arm whose account it is on, and the stage that spent it; one JSON object a line."""
        return self.root / "ledger.jsonl"

    @property
    def evaluations(self) -> Path:
        return self.root / "evaluations"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def trainer_lock(self) -> Path:
        """Held by every stage process; names the newest epoch. See `s2d.runner.exclusive`."""
        return self.root / "trainer.lock"

    @property
    def holder(self) -> Path:
        """The stage process that began last, until its end has been told."""
        return self.root / "trainer.json"

    def heartbeat(self, epoch: int) -> Path:
        """Touched by the supervisor of this epoch after each lease renewal; a stage that sees it grow old ends itself.

        One file per claim: a stage must not take the next supervisor's touches for its own's.
        """
        return self.root / f"heartbeat-{epoch}"
