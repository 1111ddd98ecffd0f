"""Runs a cell's stage as a job would, and keeps a row of what it took beside what the plan had said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.planner.cells import Cell
from benchmarks.planner.pairs import SPECIAL, write_pair, write_problems
from s2d.data.ingest import ingest
from s2d.data.rows import read_rows
from s2d.events import NewEvent
from s2d.plan.document import Model, Plan, TeacherRollouts
from s2d.plan.graph import base_of, made_by
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.rollouts.stored import RolloutStore, StoredRollout
from s2d.runner.child import Wish
from s2d.runner.layout import JobLayout
from s2d.runner.local import summary_of
from s2d.runner.pipeline import Pipeline
from s2d.runner.task import StageResult

Row = dict[str, Any]


def plan_of(cell: Cell, folder: Path, *, weights: bool = True) -> tuple[Plan, Path]:
    """The cell's plan on this machine, its models and problems written under `folder`; and the file of problems."""
    upload = write_problems(cell, folder / "problems.jsonl")
    data = summary_of(upload)
    models = write_pair(cell, folder, weights=weights)
    request = read_request({**models, "training_file": data.file_id, **cell.options()})
    return make_plan(request, data, detect(), ModelPolicy(roots=(folder,), allow_hub=False)), upload


@dataclass
class _Clock:
    """A host that takes the time of a stage, from before its process is started until its end is seen."""

    stage: str
    seconds: float = 0.0
    epoch: int | None = None
    missed: Callable[..., tuple[()]] = field(default=lambda *_: ())
    spend: Callable[..., None] = field(default=lambda *_: None)

    def wish(self) -> Wish:
        return "run"

    def events(self, events: list[NewEvent]) -> None:
        for event in events:
            if event.type == "stage" and event.stage == self.stage:
                self.seconds = time.monotonic() - self.seconds


class _OneStage(Pipeline):
    """All other stages count as done: what they would have left is there, made of the base models and of chance."""

    cell: Cell

    def _prepare(self) -> None:
        super()._prepare()
        for stage in self.plan.stages:
            if stage.id == self.cell.stage:
                continue
            self.layout.stage(stage.id).mkdir(parents=True)
            done = StageResult(stage=stage.id, kind=stage.kind)
            self.layout.result(stage.id).write_text(done.model_dump_json())
            if made := made_by(stage):
                self._model(made)
            if isinstance(stage, TeacherRollouts):
                self._rollouts(stage)

    def _model(self, name: str) -> None:
        base = {"base_teacher": self.plan.teacher, "base_student": self.plan.student}
        self.layout.model(name).parent.mkdir(exist_ok=True)
        self.layout.model(name).symlink_to(base[base_of(self.plan.stages, name)].name)

    def _rollouts(self, stage: TeacherRollouts) -> None:
        rng, longest = Random(0), self.cell.completion
        rows = [row.id for row in read_rows(self.layout.prompts(stage.pool))][: stage.prompts]
        drawn = [[rng.randrange(len(SPECIAL), self.cell.vocabulary) for _ in range(longest)] for _ in rows]
        stored = [StoredRollout(row_id=row, ids=ids, truncated=True) for row, ids in zip(rows, drawn, strict=True)]
        store = RolloutStore(self.layout.rollouts(stage.id))
        store.root.mkdir(parents=True)
        store.write(0, stored)

    def _report(self) -> None:
        """Nobody reads one."""


def run_cell(cell: Cell) -> Row:
    """Run the cell's stage in a folder of its own. RuntimeError: it did not succeed."""
    with TemporaryDirectory() as name:
        folder, clock = Path(name), _Clock(cell.stage)
        plan, upload = plan_of(cell, folder)
        rows = folder / "rows.jsonl"
        with upload.open("rb") as stream:
            ingest(stream, rows)
        pipeline = _OneStage(plan, rows, JobLayout(folder / "job"), clock)
        pipeline.cell = cell
        outcome = pipeline.run()
        if outcome.state != "succeeded":
            raise RuntimeError(f"Cell {cell.name!r} ended as {outcome.state}: {outcome.error}")
        return _row(cell, plan, pipeline.layout, clock.seconds)


def _row(cell: Cell, plan: Plan, layout: JobLayout, seconds: float) -> Row:
    stage = plan.stage(cell.stage)
    result = StageResult.model_validate_json(layout.result(stage.id).read_text())
    return {
        "cell": cell.name,
        "stage": stage.kind,
        "measured_seconds": round(seconds, 2),
        "seconds_in_stage": round(result.seconds, 2),
        "train_seconds": result.data.get("train_seconds"),
        "measured_peak_gib": result.peak_memory_gib,
        "steps": result.steps,
        "tokens": result.tokens,
        "prompt_tokens": result.prompt_tokens,
        "plan": stage.model_dump(mode="json", exclude={"why"}),
        "teacher": _sizes(plan.teacher),
        "student": _sizes(plan.student),
        "hardware": plan.hardware.model_dump(mode="json"),
        "max_prompt_tokens": plan.max_prompt_tokens,
        "max_completion_tokens": plan.max_completion_tokens,
    }


def _sizes(model: Model) -> Row:
    return model.model_dump(mode="json", exclude={"name", "revision", "config_hash", "source"})
