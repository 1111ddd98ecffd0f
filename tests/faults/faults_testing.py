"""What the fault tests share: a service whose parts are killed, and jobs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tiny import SHORT, labels

from benchmarks import invariants
from benchmarks.rig import Rig
from s2d.runner.layout import JobLayout
from s2d.stages.drill import MODEL

#: One control, and a first stage that is long enough to be disturbed.
OPTIONS: dict[str, Any] = {
    **SHORT,
    "stages": {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "steps": 100, "save_every": 5}},
}
#: The same with a first stage that is still at work when a slow test has come to harm it.
LONG: dict[str, Any] = {
    "stages": {**OPTIONS["stages"], "teacher_rl": {**OPTIONS["stages"]["teacher_rl"], "steps": 400}},
}


class Fault:
    """A rig, a file of labels on it, and what is asked of each job in the end."""

    def __init__(self, rig: Rig, folder: Path) -> None:
        self.rig = rig
        self.client = rig.client
        self.file = self.client.upload(labels(folder / "labels.jsonl"))

    def job(self, **changes: Any) -> str:
        """A new job; the same changes give the same plan."""
        return self.client.start(self.client.plan(self.file, **{**OPTIONS, **changes}), self.file)

    def layout(self, job: str) -> JobLayout:
        return JobLayout(self.rig.settings.job_dir(job))

    def digest(self, job: str) -> str:
        """Which batches the job's student has seen, in order, since the base models."""
        return (self.layout(job).model("rl_student") / MODEL).read_text()

    def states(self, job: str) -> list[str]:
        return [one["data"]["state"] for one in self.client.events(job) if one["type"] == "state"]

    def check(self, job: str) -> None:
        """Nothing is missing, doubled or out of order, and no stage process lives."""
        stages = [stage["id"] for stage in self.client.job(job)["stages"]]
        assert invariants.violations(self.client.events(job), self.layout(job), stages) == []
        assert self.rig.stages(job) == []
