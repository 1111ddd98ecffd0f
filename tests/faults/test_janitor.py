"""The janitor beside cancelled, resumed and running jobs, other janitors, and its own death; on both databases."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import DEMO, labels, plan_for

from s2d.runner import retention
from s2d.runner.layout import JobLayout
from s2d.services import files
from s2d.services import jobs as services
from s2d.services.context import Context, open_context
from s2d.settings import Settings
from s2d.stages.checkpoints import MANIFEST, newest_valid, seal
from s2d.store import events, jobs, plans
from s2d.store.database import db_now
from s2d.store.tables import EventRow, FileRow, JobRow, PlanRow
from worker.janitor import Janitor
from worker.supervisor import Supervisor

STAGE = "teacher_rl"
#: Says what it starts from. The first time it writes a checkpoint and waits to be stopped, the second time it ends.
FAKE_STAGE = """
import signal, sys, time
from pathlib import Path
from s2d.atomic import write_atomic
from s2d.events import NewEvent
from s2d.plan.document import load_plan
from s2d.runner.layout import JobLayout
from s2d.runner.task import EXIT_INTERRUPTED, StageResult, StageTask
from s2d.stages.checkpoints import newest_valid, seal

signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_INTERRUPTED))
task = StageTask.model_validate_json(Path(sys.argv[1]).read_text())
layout = JobLayout(task.job_dir)
plan, folder = load_plan(layout.plan.read_text()), layout.stage(task.stage)
resume = newest_valid(folder / "checkpoints", plan.id)
told = NewEvent(type="message", stage=task.stage, message=f"starts from {resume.name if resume else None}")
with (folder / task.events_name).open("a") as file:
    file.write(told.model_dump_json() + "\\n")
if task.attempt == 1:
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model.safetensors").write_bytes(b"x" * 1000)
    seal(checkpoint, plan_id=plan.id, stage=task.stage, step=2, sampler_position=0, labels_spent=0)
    time.sleep(120)
result = StageResult(stage=task.stage, kind=plan.stage(task.stage).kind)
write_atomic(layout.result(task.stage), result.model_dump_json())
"""


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Iterator[Context]:
    script = tmp_path / "stage.py"
    script.write_text(FAKE_STAGE)
    settings = Settings(
        state_dir=tmp_path / "state",
        database_url=database_url,
        model_roots=(DEMO,),
        lease_s=3,
        grace_s=20,
        stage_command=(sys.executable, str(script)),
        checkpoint_budget_gib=0,
    )
    context = open_context(settings)
    yield context
    context.db.close()


def bare_job(ctx: Context, state: str = "cancelled", ended_s: float = 60.0) -> str:
    """A job that nobody runs, in this state, with two checkpoints of an unfinished stage."""
    with ctx.db.begin() as session:
        if session.get(PlanRow, "plan_1") is None:
            session.add(PlanRow(id="plan_1", document={}, created_at=db_now()))
            about = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0}
            session.add(FileRow(id="file_1", **about, report={}, created_at=db_now()))
            session.flush()
        row = jobs.create(session, plan_id="plan_1", file_id="file_1", name=None)
        row.state = state
        row.finished_at = db_now() - ended_s if state in ("failed", "cancelled", "succeeded") else None
    for step in (2, 4):
        folder = checkpoints(ctx, row.id) / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 1000)
        seal(folder, plan_id="plan_1", stage=STAGE, step=step, sampler_position=0, labels_spent=0)
    return row.id


def checkpoints(ctx: Context, job_id: str) -> Path:
    return JobLayout(ctx.settings.job_dir(job_id)).stage(STAGE) / "checkpoints"


def names(ctx: Context, job_id: str) -> list[str]:
    return sorted(path.name for path in checkpoints(ctx, job_id).iterdir())


def told(ctx: Context, job_id: str) -> list[EventRow]:
    """The messages among a job's events."""
    with ctx.db.read() as session:
        return [event for event in events.since(session, job_id, 0, 1000) if event.type == "message"]


def limited(ctx: Context, **changes: float) -> Context:
    return Context(ctx.settings.model_copy(update=changes), ctx.db)


def test_a_cancelled_job_loses_its_checkpoints_and_starts_the_stage_anew(ctx: Context, tmp_path: Path) -> None:
    job_id = real_job(ctx, tmp_path)
    supervisor = Supervisor(ctx, "worker", lambda: False)
    left: list[str | None] = []
    running = threading.Thread(target=lambda: left.append(supervisor.run(job_id)))
    running.start()
    wait_for(checkpoints(ctx, job_id) / "checkpoint-2" / MANIFEST)
    Janitor(lambda: ctx).turn()
    assert names(ctx, job_id) == ["checkpoint-2"], "the job is running"
    services.cancel(ctx, job_id)
    running.join(60)
    assert left == ["cancelled"]

    Janitor(lambda: ctx).turn()
    assert names(ctx, job_id) == []
    (event,) = (one for one in told(ctx, job_id) if "limit" in one.data)
    assert (event.level, event.stage, event.data["checkpoints"]) == ("info", STAGE, ["checkpoint-2"])
    assert event.data["bytes"] > 1000
    assert f"{STAGE} starts from its beginning" in event.message

    assert services.resume(ctx, job_id).state == "queued"
    assert supervisor.run(job_id) == "succeeded"
    assert [one.message for one in told(ctx, job_id) if "from checkpoint" in one.message] == []
    assert [one.message for one in told(ctx, job_id)].count("starts from None") == 2


def real_job(ctx: Context, tmp_path: Path) -> str:
    upload = labels(tmp_path / "labels.jsonl")
    with upload.open("rb") as stream:
        file = files.upload(ctx, stream, filename=upload.name, purpose="fine-tune")
    plan = plan_for(upload, controls=[], stages={})
    plan = plan.model_copy(update={"stages": plan.stages[:1]}).sealed()
    with ctx.db.begin() as session:
        return jobs.create(session, plan_id=plans.put(session, plan).id, file_id=file.id, name=None).id


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


@pytest.mark.parametrize("state", ["queued", "running", "pausing", "paused", "cancelling"])
def test_a_job_that_may_still_run_keeps_everything(ctx: Context, state: str) -> None:
    job_id = bare_job(ctx, state)
    leftover = checkpoints(ctx, job_id) / "quarantine-0-checkpoint-3"
    leftover.mkdir()
    temporary = ctx.settings.job_dir(job_id) / ".plan.json.1.tmp"
    temporary.touch()
    Janitor(lambda: limited(ctx, checkpoint_days=0)).turn()
    assert names(ctx, job_id) == ["checkpoint-2", "checkpoint-4", "quarantine-0-checkpoint-3"]
    assert temporary.exists()
    assert told(ctx, job_id) == []


def test_the_job_that_ended_first_goes_first_and_old_ones_in_any_case(ctx: Context) -> None:
    day = 86_400
    ancient, older, newer = (bare_job(ctx, "failed", age) for age in (15 * day, 2 * day, day))
    bare_job(ctx, "paused")  # not counted
    size = sum(one.bytes for one in retention.resumable(JobLayout(ctx.settings.job_dir(newer))))
    roomy = limited(ctx, checkpoint_budget_gib=2.5 * size / 1024**3)
    Janitor(lambda: roomy).turn()
    assert [names(ctx, one) for one in (ancient, older, newer)] == [[], *[["checkpoint-2", "checkpoint-4"]] * 2]
    tight = limited(ctx, checkpoint_budget_gib=1.5 * size / 1024**3)
    Janitor(lambda: tight).turn()
    assert [names(ctx, one) for one in (older, newer)] == [[], ["checkpoint-2", "checkpoint-4"]]
    limits = {job_id: [event.data["limit"] for event in told(ctx, job_id)] for job_id in (ancient, older, newer)}
    assert limits == {ancient: ["age"], older: ["budget"], newer: []}


DIES = """
import os, signal, sys
from s2d.runner import retention
from s2d.services.context import open_context
from s2d.settings import Settings
from worker.janitor import Janitor

retention.shutil.rmtree = lambda _: os.kill(os.getpid(), signal.SIGKILL)
ctx = open_context(Settings.model_validate_json(sys.argv[1]))
Janitor(lambda: ctx).turn()
"""


def test_what_a_killed_janitor_left_goes_at_the_next_turn(ctx: Context) -> None:
    job_id = bare_job(ctx)
    run = subprocess.run([sys.executable, "-c", DIES, ctx.settings.model_dump_json()], check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(names(ctx, job_id)) == 2
    assert all(name.startswith(retention.TRASH) for name in names(ctx, job_id))
    assert newest_valid(checkpoints(ctx, job_id), "plan_1") is None, "a resume meets no half of it"
    assert services.resume(ctx, job_id).state == "queued"
    Janitor(lambda: ctx).turn()
    assert names(ctx, job_id) == []
    assert len(told(ctx, job_id)) == 1, "said once, before anything was deleted"


def test_two_janitors_at_once_are_harmless(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    made = [bare_job(ctx, ended_s=age) for age in range(1, 9)]
    start = threading.Barrier(3)
    failed: list[BaseException] = []

    def clean() -> None:
        start.wait()
        try:
            Janitor(lambda: ctx).turn()
        except BaseException as err:
            failed.append(err)

    threads = [threading.Thread(target=clean) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [record.message for record in caplog.records if record.levelname != "INFO"] == []
    Janitor(lambda: ctx).turn()
    for job_id in made:
        assert names(ctx, job_id) == []
        (event,) = told(ctx, job_id)
        assert event.data["checkpoints"] == ["checkpoint-2", "checkpoint-4"]


def test_a_job_that_is_resumed_before_its_turn_comes_keeps_its_checkpoints(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bare_job(ctx)
    choose = retention.beyond

    def resumed_meanwhile(*given: object, **limits: float) -> list[retention.Beyond]:
        services.resume(ctx, job_id)
        return choose(*given, **limits)  # type: ignore[arg-type]

    monkeypatch.setattr(retention, "beyond", resumed_meanwhile)
    Janitor(lambda: ctx).turn()
    assert names(ctx, job_id) == ["checkpoint-2", "checkpoint-4"]
    assert told(ctx, job_id) == []


def test_a_resume_waits_until_it_is_settled_what_goes(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bare_job(ctx)
    rename = retention.set_aside
    resumes: list[threading.Thread] = []

    def slowly(leftover: retention.Leftover) -> Path | None:
        if not resumes:
            resumes.append(threading.Thread(target=services.resume, args=(ctx, job_id)))
            resumes[0].start()
            time.sleep(0.5)
        assert resumes[0].is_alive(), "the job was resumed while its checkpoints were going"
        return rename(leftover)

    monkeypatch.setattr(retention, "set_aside", slowly)
    Janitor(lambda: ctx).turn()
    resumes[0].join()
    with ctx.db.read() as session:
        kinds = [event.type for event in events.since(session, job_id, 0, 10)]
        assert session.get_one(JobRow, job_id).state == "queued"
    assert kinds == ["state", "message", "state"]
    assert names(ctx, job_id) == []


def test_what_cannot_be_renamed_does_not_keep_the_rest(
    ctx: Context, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck, free = bare_job(ctx, ended_s=90), bare_job(ctx, ended_s=30)
    rename = retention.set_aside

    def refuse(leftover: retention.Leftover) -> Path | None:
        if stuck in str(leftover.path):
            raise PermissionError(13, "Permission denied")
        return rename(leftover)

    monkeypatch.setattr(retention, "set_aside", refuse)
    Janitor(lambda: ctx).turn()
    assert names(ctx, free) == []
    assert names(ctx, stuck) == ["checkpoint-2", "checkpoint-4"]
    assert told(ctx, stuck) == [], "nothing went"
    assert "cannot be set aside" in caplog.text
