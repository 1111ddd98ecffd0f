"""Which models of a job become students: every arm's last one, and the base as the job's prompts asked it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from sqlalchemy import select
from tiny import DEMO, SHORT, labels, plan_for
from transformers import AutoTokenizer

from s2d.plan.document import Plan
from s2d.plan.graph import BASE, WORKFLOW, products
from s2d.plan.names import Control
from s2d.plan.prompting import Prompting
from s2d.rollouts.prompting import prompted
from s2d.runner import retention
from s2d.runner.layout import JobLayout
from s2d.runner.pipeline import Outcome
from s2d.services import files
from s2d.services.context import Context, open_context
from s2d.settings import Settings
from s2d.store import events, jobs, plans, students
from s2d.store.tables import StudentRow
from worker import supervisor
from worker.graduates import graduates
from worker.supervisor import Supervisor

MATCHED = tuple(f"{name}_compute" for name in ("direct_grpo", "raw_teacher_bridge", "opd_only", "warmup_only"))
PROMPTING = {"system": "Be brief.", "suffix": "\nOnly the number."}


def plan_of(tmp_path: Path, **changes: Any) -> Plan:
    return plan_for(labels(tmp_path / "labels.jsonl"), **changes)


def finished(root: Path, plan: Plan, *, without: str | None = None) -> JobLayout:
    """The folder of a job that has run this plan: every arm's model, of one byte."""
    layout = JobLayout(root)
    layout.root.mkdir(parents=True, exist_ok=True)
    layout.plan.write_text(plan.model_dump_json())
    for model in products(plan.stages).values():
        layout.model(model).mkdir(parents=True)
        if model != without:
            (layout.model(model) / "model.safetensors").write_bytes(b"x")
    return layout


def paths(layout: JobLayout) -> dict[str, Path]:
    return dict(graduates(layout)[0])


def test_every_arm_ends_with_one_model_and_no_candidate_is_one(tmp_path: Path) -> None:
    rates = {"direct_grpo": {**SHORT["stages"]["direct_grpo"], "learning_rates": [1e-4, 1e-3]}}
    plan = plan_of(tmp_path, controls=get_args(Control), compute_matched=True, stages={**SHORT["stages"], **rates})
    ends = products(plan.stages)
    assert ends.pop(WORKFLOW) == plan.product == "rl_student"
    assert ends == {arm: arm for arm in (*get_args(Control), *MATCHED)}
    evaluated = set(plan.stage("evaluate").models)
    assert set(ends.values()) <= evaluated


def test_base_and_controls_come_before_the_workflow(tmp_path: Path) -> None:
    layout = finished(tmp_path / "job", plan_of(tmp_path))
    found, remarks = graduates(layout)
    assert found == [
        (BASE, DEMO / "student"),
        ("direct_grpo", layout.model("direct_grpo")),
        (WORKFLOW, layout.model("rl_student")),
    ]
    assert remarks == []


def test_an_arm_without_weights_is_left_out_and_named(tmp_path: Path) -> None:
    layout = finished(tmp_path / "job", plan_of(tmp_path), without="direct_grpo")
    found, (remark,) = graduates(layout)
    assert [arm for arm, _ in found] == [BASE, WORKFLOW]
    assert (remark.level, remark.data) == ("warn", {"arm": "direct_grpo"})
    assert str(layout.model("direct_grpo")) in remark.message


def test_a_base_that_is_not_here_any_more_is_left_out_and_named(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(DEMO, models)
    layout = finished(tmp_path / "job", plan_of(tmp_path, models=models))
    assert paths(layout)[BASE] == models / "student"
    shutil.rmtree(models / "student")
    found, (remark,) = graduates(layout)
    assert [arm for arm, _ in found] == ["direct_grpo", WORKFLOW]
    assert "no safetensors of" in remark.message


@pytest.mark.parametrize("source", ["hub", "catalog"])
def test_a_base_from_the_hub_lies_in_the_cache(tmp_path: Path, source: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    revision = "abc" if source == "hub" else None
    plan = plan_of(tmp_path)
    named = plan.student.model_copy(update={"name": "me/tiny", "source": source, "revision": revision})
    layout = finished(tmp_path / "job", plan.model_copy(update={"student": named}).sealed())
    assert BASE not in paths(layout)
    repository = tmp_path / "hub" / "models--me--tiny"
    snapshot = repository / "snapshots" / "abc"
    shutil.copytree(DEMO / "student", snapshot)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert paths(layout)[BASE] == snapshot
    (snapshot / "model.safetensors").unlink()
    assert BASE not in paths(layout)


def test_the_base_is_asked_with_the_prompt_that_the_job_asked_it_with(tmp_path: Path) -> None:
    layout = finished(tmp_path / "job", plan_of(tmp_path, prompt=PROMPTING))
    for _ in range(2):
        base = paths(layout)[BASE]
    assert base == layout.model("base_student")
    given, own = (AutoTokenizer.from_pretrained(folder) for folder in (DEMO / "student", base))
    assert own.chat_template == prompted(given.chat_template, Prompting.model_validate(PROMPTING))
    text = own.apply_chat_template([{"role": "user", "content": "1+1="}], tokenize=False)
    assert "Be brief." in text
    assert "1+1=\nOnly the number." in text
    assert {path.name for path in base.iterdir()} >= {path.name for path in (DEMO / "student").iterdir()}
    weights = base / "model.safetensors"
    assert weights.is_symlink(), "no second copy of the weights"
    assert weights.read_bytes() == (DEMO / "student" / "model.safetensors").read_bytes()


def test_a_base_whose_template_has_the_additions_already_gets_no_second_ones(tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(DEMO, models)
    for name in ("teacher", "student"):
        tokenizer = AutoTokenizer.from_pretrained(models / name)
        tokenizer.chat_template = prompted(tokenizer.chat_template, Prompting.model_validate(PROMPTING))
        tokenizer.save_pretrained(models / name)
    layout = finished(tmp_path / "job", plan_of(tmp_path, models=models, prompt=PROMPTING))
    assert paths(layout)[BASE] == models / "student"


def test_the_janitor_takes_no_students_weights(tmp_path: Path) -> None:
    layout = finished(tmp_path / "job", plan_of(tmp_path, prompt=PROMPTING))
    kept = [path for path in paths(layout).values() if path.is_relative_to(layout.root)]
    going = [*retention.spent(layout), *retention.remains(layout), *retention.resumable(layout)]
    assert not [one for one in going for path in kept if one.path.is_relative_to(path) or path.is_relative_to(one.path)]


# --- in the database --------------------------------------------------------------------------------------------------


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Iterator[Context]:
    context = open_context(Settings(state_dir=tmp_path / "state", database_url=database_url, model_roots=(DEMO,)))
    yield context
    context.db.close()


def run(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Outcome, **without: str) -> str:
    """A job whose stages were done by somebody else."""
    upload = labels(tmp_path / "upload.jsonl")
    plan = plan_for(upload)
    with upload.open("rb") as stream:
        file = files.upload(ctx, stream, filename="a.jsonl", purpose="fine-tune")
    with ctx.db.begin() as session:
        plans.put(session, plan)
        job = jobs.create(session, plan_id=plan.id, file_id=file.id, name=None)

    class Done:
        def __init__(self, plan: Plan, rows: Path, layout: JobLayout, *_: Any, **__: Any) -> None:
            finished(layout.root, plan, **without)

        def run(self) -> Outcome:
            return outcome

    monkeypatch.setattr(supervisor, "Pipeline", Done)
    assert Supervisor(ctx, "worker-1", lambda: False).run(job.id) == outcome.state
    return job.id


def registered(ctx: Context, job: str) -> dict[str, StudentRow]:
    with ctx.db.read() as session:
        return {row.id: row for row in session.scalars(select(StudentRow)) if row.job_id == job}


def test_a_succeeded_job_has_a_student_of_each_arm(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = run(ctx, tmp_path, monkeypatch, Outcome("succeeded", student="rl_student"))
    found, first = registered(ctx, job), f"student-{job.removeprefix('job_')}"
    arms = {name: row.arm for name, row in found.items()}
    assert arms == {first: WORKFLOW, f"{first}.base": BASE, f"{first}.direct_grpo": "direct_grpo"}
    assert {row.tenant for row in found.values()} == {"default"}
    layout = JobLayout(ctx.settings.job_dir(job))
    assert found[first].path == str(layout.model("rl_student"))
    with ctx.db.read() as session:
        newest = students.list_all(session)[0]
        assert jobs.get(session, job).student_id == first
        assert events.since(session, job, 0, 100)[-1].type == "state"
    assert newest.id == first, "who asks for the newest student wants no control"


def test_what_cannot_be_registered_is_an_event_and_fails_no_job(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome("succeeded", student="rl_student")
    job = run(ctx, tmp_path, monkeypatch, outcome, without="direct_grpo")
    assert {row.arm for row in registered(ctx, job).values()} == {BASE, WORKFLOW}
    with ctx.db.read() as session:
        last = events.since(session, job, 0, 100)[-1]
    assert (last.type, last.level, last.data) == ("message", "warn", {"arm": "direct_grpo"})


def test_a_failed_job_has_no_students(ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = {"code": "gate_c1", "message": "", "advice": "", "stage": None, "step": None, "log": []}
    assert registered(ctx, run(ctx, tmp_path, monkeypatch, Outcome("failed", error=error))) == {}
