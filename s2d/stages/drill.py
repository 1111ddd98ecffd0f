"""A fire drill: stages that train nothing, and do everything else that a stage does.

`S2D_STAGE_COMMAND='["python", "-m", "s2d.stages.drill"]'` lets a deployment rehearse its jobs in seconds and without a
GPU: kill its workers, restart its broker, drain its hosts. A stage takes its rows in the plan's order, spends its
labels, reports, saves and seals checkpoints, stops when asked and resumes, all through the code that real stages use. A
model is one number: a hash over every row of every step, in order. Two runs that end with the same one have seen the
same batches.

The students of a drill answer nothing, and its report's accuracies mean nothing.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2d.atomic import write_atomic
from s2d.data.rows import read_rows
from s2d.evaluate.scores import Scores
from s2d.plan.document import Evaluate, Grpo, Select, Stage, TeacherRollouts, Training
from s2d.plan.graph import labels_read
from s2d.rollouts.stored import RolloutStore, StoredRollout
from s2d.runner.task import GateResult, StageResult
from s2d.stages.__main__ import Entry, program
from s2d.stages.checkpoints import newest_valid, seal
from s2d.stages.datasets import training_order
from s2d.stages.labels import check_account
from s2d.stages.runtime import Interrupted, StageRuntime

STEP_S = 0.02
#: The file that a model consists of, and a checkpoint.
MODEL = "drill.json"


@dataclass(frozen=True)
class Problem:
    row_id: str


def entry(stage: Stage) -> Entry:
    if isinstance(stage, Training):
        return train
    by_kind: dict[str, Entry] = {"teacher_rollouts": teacher_rollouts, "select": select, "evaluate": evaluate}
    return by_kind[stage.kind]


def train(runtime: StageRuntime) -> StageResult:
    stage = runtime.stage
    rows = _rows(_files(runtime))
    if isinstance(stage, Grpo):
        check_account(runtime, rows)
    per_step = stage.prompts_per_step if isinstance(stage, Grpo) else stage.sequences_per_step
    order = training_order(len(rows), stage.steps * per_step, stage.seed)
    run = _Run(runtime, per_step, len(rows) if isinstance(stage, Grpo) else 0)
    step, digest = run.resume()
    while step < stage.steps:
        batch = [rows[index].row_id for index in order[step * per_step : (step + 1) * per_step]]
        step, digest = step + 1, hashlib.sha256(json.dumps([digest, batch]).encode()).hexdigest()
        time.sleep(STEP_S)
        run.report(step, digest)
        if step % stage.save_every == 0 or step == stage.steps or runtime.stop_requested:
            run.save(step, digest)
        if runtime.stop_requested and step < stage.steps:
            raise Interrupted
    _save_model(runtime, stage.trains, digest)
    gate = _passed(runtime, "c2") if stage.kind == "warmup" else None
    return _result(runtime, steps=step, tokens=step * per_step, labels=run.spent(step), gate=gate)


class _Run:
    """The checkpoints and reports of one training stage."""

    def __init__(self, runtime: StageRuntime, per_step: int, label_rows: int) -> None:
        self._runtime = runtime
        self._per_step = per_step
        self._label_rows = label_rows
        self._root = runtime.folder / "checkpoints"

    def spent(self, step: int) -> int:
        return min(step * self._per_step, self._label_rows)

    def resume(self) -> tuple[int, str]:
        """Steps done, and the hash so far."""
        stage = self._runtime.stage
        newest = newest_valid(self._root, self._runtime.plan.id)
        if newest is None:
            return 0, _read_model(Path(self._runtime.task.models[stage.starts_from]))
        self._runtime.emit("message", f"resuming from {newest.name}")
        state = json.loads((newest / MODEL).read_text())
        return state["step"], state["digest"]

    def report(self, step: int, digest: str) -> None:
        metrics = {"loss": int(digest[:8], 16) / 2**32}
        steps, tokens = self._runtime.stage.steps, step * self._per_step
        self._runtime.emit("metrics", step=step, steps=steps, tokens=tokens, metrics=metrics, digest=digest)

    def save(self, step: int, digest: str) -> None:
        folder = self._root / f"checkpoint-{step}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_text(json.dumps({"step": step, "digest": digest}))
        about: dict[str, Any] = {"plan_id": self._runtime.plan.id, "stage": self._runtime.task.stage, "step": step}
        seal(folder, **about, sampler_position=step * self._per_step, labels_spent=self.spent(step))
        self._runtime.emit("checkpoint", f"{folder.name} written", step=step, path=str(folder))


def teacher_rollouts(runtime: StageRuntime) -> StageResult:
    stage: TeacherRollouts = runtime.stage
    judging = bool(labels_read(stage))
    if judging:
        check_account(runtime, _rows([runtime.layout.data / "validation.jsonl"]))
    rows = _rows([runtime.layout.prompts(stage.pool)])[: stage.prompts]
    store = RolloutStore(runtime.layout.rollouts(stage.id))
    for part, row in enumerate(rows[:8]):
        if not store.has(part):
            time.sleep(STEP_S)
            store.write(part, [StoredRollout(row_id=row.row_id, ids=[part], truncated=False)])
        runtime.progress(part + 1, min(8, len(rows)), "teacher rollouts")
    store.seal(plan=runtime.plan.id, teacher=stage.teacher)
    return _result(runtime, tokens=len(rows), gate=_passed(runtime, "c1") if judging else None)


def select(runtime: StageRuntime) -> StageResult:
    stage: Select = runtime.stage
    check_account(runtime, _rows([runtime.layout.data / "validation.jsonl"]))
    chosen = stage.candidates[0]
    _save_model(runtime, stage.keeps_as, _read_model(runtime.layout.model(chosen)))
    return _result(runtime, data={"chosen": chosen})


def evaluate(runtime: StageRuntime) -> StageResult:
    stage: Evaluate = runtime.stage
    rows = _rows([runtime.layout.data / "test.jsonl"])
    check_account(runtime, rows)
    for index, model in enumerate(stage.models):
        path = runtime.layout.evaluations / f"test-{model}.json"
        if not path.exists():
            time.sleep(STEP_S)
            rewards = [[0.0] * stage.k for _ in rows]
            scores = Scores([row.row_id for row in rows], rewards, len(rows), truncated=0.0, seconds=STEP_S)
            scores.save(path, role=model, split="test")
            runtime.emit("evaluation", f"{model}: a drill", model=model, avg_at_k=0.0, k=stage.k)
        runtime.progress(index + 1, len(stage.models), f"testing {model}")
    return _result(runtime, steps=len(stage.models), labels=len(rows))


def _files(runtime: StageRuntime) -> list[Path]:
    stage = runtime.stage
    if isinstance(stage, Grpo):
        return [runtime.layout.data / f"{role}.jsonl" for role in stage.label_roles]
    return [runtime.layout.prompts(getattr(stage, "pool", "bridge"))]


def _rows(files: list[Path]) -> list[Problem]:
    return [Problem(row.id) for file in files for row in read_rows(file)]


def _read_model(path: Path) -> str:
    """A base model's name, or the hash of one that a stage has made."""
    made = path / MODEL
    return str(json.loads(made.read_text())["digest"]) if made.exists() else path.name


def _save_model(runtime: StageRuntime, name: str, digest: str) -> None:
    write_atomic(runtime.layout.model(name) / MODEL, json.dumps({"digest": digest}))


def _passed(runtime: StageRuntime, gate: Any) -> GateResult:
    result = GateResult(gate=gate, passed=True, measured={}, message=f"{gate}: a drill measures nothing")
    runtime.gate(result)
    return result


def _result(runtime: StageRuntime, **values: Any) -> StageResult:
    return StageResult(stage=runtime.stage.id, kind=runtime.stage.kind, **values)


if __name__ == "__main__":
    sys.exit(program(sys.argv[1:], entry))
