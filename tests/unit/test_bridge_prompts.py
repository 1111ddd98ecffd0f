"""The bridge's stages on a data folder that was changed: a held-out problem is refused, whichever way it got in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny import DEMO, SHORT, labels, plan_for

from s2d.data.ingest import ingest
from s2d.data.rows import read_rows, row_line
from s2d.data.split import split
from s2d.errors import StageFailure
from s2d.plan.document import Plan
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageTask, this_process
from s2d.stages import opd, teacher_rollouts, warmup
from s2d.stages.runtime import StageRuntime

RUN: dict[str, Any] = {"teacher_rollouts": teacher_rollouts, "warmup": warmup, "opd": opd}
#: Stages of each kind that read a pool. The workflow's rollouts begin with C1: they are in tests/e2e/test_controls.py.
READERS = {
    "bridge": ("raw_rollouts", "raw_warmup", "warmup", "opd", "opd_only"),
    "teacher_rl": ("labeled_rollouts", "labeled_warmup", "labeled_opd"),
}
HELD_OUT = ("validation", "test", "student_rl")


class _Went(Exception):
    """The stage has read its prompts and goes on."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    upload = labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")
    controls = ["raw_teacher_bridge", "labeled_bridge", "opd_only"]
    stages = {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"}
    return plan_for(upload, controls=controls, stages=stages), upload


@pytest.fixture
def layout(plan: tuple[Plan, Path], tmp_path: Path) -> JobLayout:
    """A job's folder with its data dealt out, as the runner does it; steps of other stages are not asked for."""
    document, upload = plan
    made = JobLayout(tmp_path / "job")
    made.root.mkdir()
    stages = tuple(
        stage.model_copy(update={"matches": ()}) if hasattr(stage, "matches") else stage for stage in document.stages
    )
    made.plan.write_text(document.model_copy(update={"stages": stages}).sealed().model_dump_json())
    rows = tmp_path / "rows.jsonl"
    with upload.open("rb") as stream:
        ingest(stream, rows)
    counts: Any = {**document.data.labels.model_dump(), "prompts": document.data.bridge_prompts}
    dealt = split(rows, counts, document.data.split_seed, made.data)
    (made.data / "split.json").write_text(dealt.model_dump_json())
    return made


def put_into(layout: JobLayout, pool: Any, role: str) -> str:
    """The first row of a role, without its answer, at the end of a pool; returns its id."""
    row = next(read_rows(layout.data / f"{role}.jsonl"))
    with layout.prompts(pool).open("ab") as file:
        file.write(row_line(row.model_copy(update={"answer": None})))
    return row.id


def run(layout: JobLayout, plan: Plan, stage: str) -> None:
    """The stage up to where it has read its prompts."""
    layout.stage(stage).mkdir(parents=True)
    where = {made: str(DEMO / "student") for made in ("base_student", "warmup_student", "raw_warmup_student")}
    where |= {made: str(DEMO / "student") for made in ("labeled_warmup_student", "opd_student")}
    where |= {made: str(DEMO / "teacher") for made in ("base_teacher", "rl_teacher")}
    task = StageTask(job_dir=layout.root, stage=stage, attempt=1, models=where, supervisor=this_process())
    RUN[plan.stage(stage).kind].run(StageRuntime(task))


@pytest.fixture
def _no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a stage does next ends it: no rollout is drawn and no trainer made."""

    def went(*_: Any, **__: Any) -> None:
        raise _Went

    monkeypatch.setattr(StageRuntime, "progress", went)
    monkeypatch.setattr(warmup, "RolloutStore", went)
    monkeypatch.setattr(opd, "teacher_model", went)


@pytest.mark.usefixtures("_no_further")
@pytest.mark.parametrize("role", HELD_OUT)
@pytest.mark.parametrize(("pool", "stage"), [(pool, stage) for pool, stages in READERS.items() for stage in stages])
def test_a_held_out_prompt_is_refused(
    layout: JobLayout, plan: tuple[Plan, Path], pool: str, stage: str, role: str
) -> None:
    strange = put_into(layout, pool, role)
    with pytest.raises(StageFailure, match=f"first {strange}, which belongs to {role}") as err:
        run(layout, plan[0], stage)
    assert err.value.code == "label_spent"
    assert err.value.message.startswith(f"{stage} would read 1 prompts")


@pytest.mark.usefixtures("_no_further")
@pytest.mark.parametrize("stage", [stage for stages in READERS.values() for stage in stages])
def test_the_problems_of_stage_1_and_unlabeled_ones_are_read(
    layout: JobLayout, plan: tuple[Plan, Path], stage: str
) -> None:
    with pytest.raises(_Went):
        run(layout, plan[0], stage)
