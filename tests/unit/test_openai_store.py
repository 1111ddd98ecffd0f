"""What the OpenAI surface asks of the store, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.orm import Session

from s2d.errors import NotFound
from s2d.events import NewEvent
from s2d.runner.layout import JobLayout
from s2d.runner.pipeline import Outcome
from s2d.services import fine_tuning
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import events, jobs, plans, students
from s2d.store.database import Database, db_now
from s2d.store.plans import Summary
from s2d.store.tables import FileRow, PlanRow, PlanTenantRow
from worker import supervisor
from worker.supervisor import Supervisor

FILE = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0, "report": {}}
DOCUMENT = {"teacher": {"name": "t\u00e4"}, "student": {"name": 's"'}, "seed": 2**31 - 1, "stages": []}
ODD = {'a"b.c$[0]{,}': "\u00e4\"\\'%"}


@pytest.fixture
def ctx(database_url: str, tmp_path: Path) -> Iterator[Context]:
    """A file and a plan of the tenant `a`."""
    database = Database(database_url)
    database.migrate()
    with database.of("a").begin() as session:
        session.add(FileRow(id="file_a", **FILE, created_at=db_now()))
        session.add(PlanRow(id="plan_a", document=DOCUMENT, created_at=db_now()))
        session.flush()
        session.add(PlanTenantRow(plan_id="plan_a", tenant="a"))
    yield Context(Settings(state_dir=tmp_path), database.of("a"))
    database.close()


def made(ctx: Context, request: dict[str, object] | None = None) -> str:
    with ctx.db.begin() as session:
        return jobs.create(session, plan_id="plan_a", file_id="file_a", name=None, request=request).id


def test_a_job_keeps_what_was_sent_and_is_seen_with_its_plan(ctx: Context) -> None:
    sent: dict[str, object] = {"metadata": ODD, "suffix": "\u65e5", "method": None}
    seen = fine_tuning.get(ctx, made(ctx, sent))
    assert (seen.job.request, seen.plan) == (sent, Summary("t\u00e4", 's"', 2**31 - 1))
    assert fine_tuning.get(ctx, made(ctx)).job.request is None
    with ctx.db.of("b").read() as session:
        assert plans.summaries(session, ["plan_a"]) == {}


def test_filters(ctx: Context) -> None:
    native, odd, plain = made(ctx), made(ctx, {"metadata": ODD}), made(ctx, {"seed": 1})

    def listed(metadata: dict[str, str] | None, without: bool = False) -> list[str]:
        found, _ = fine_tuning.list_page(ctx, after=None, limit=5, metadata=metadata, without_metadata=without)
        return [seen.job.id for seen in found]

    assert listed(None) == [plain, odd, native]
    assert listed(ODD) == [odd]
    assert listed({"k": "v"}) == []
    assert listed(None, without=True) == [plain, native]


def test_events_newest_first(ctx: Context) -> None:
    job_id = made(ctx)
    metrics = [
        NewEvent(type="metrics", stage="opd", step=step, data={"metrics": {"loss": loss}})
        for step, loss in ((1, 0.5), (2, 0.4), (2, 0.3))
    ]
    with ctx.db.begin() as session:
        events.append(session, job_id, None, metrics)
    with ctx.db.read() as session:
        rows, more = events.latest(session, job_id, before=None, limit=2)
        assert ([row.seq for row in rows], more) == ([4, 3], True)
        rows, more = events.latest(session, job_id, before=3, limit=2)
        assert ([row.seq for row in rows], more) == ([2, 1], False)
        rows, more = events.latest(session, job_id, before=None, limit=5, kind="state")
        assert ([row.seq for row in rows], more) == ([1], False)
        assert events.metrics_at(session, job_id, {2, 7}) == {("opd", 2): {"loss": 0.3}}


def test_the_students_of_a_job_carry_its_suffix(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = made(ctx, {"suffix": "First try"})
    with ctx.db.begin() as session:
        claim = jobs.claim(session, job_id, "worker", 60)
    assert claim is not None
    left = [(arm, Path("/weights") / arm) for arm in ("base", "workflow")]
    monkeypatch.setattr(supervisor, "graduates", lambda _: (left, []))
    lease = SimpleNamespace(persist=lambda write: _in_transaction(ctx, write))
    job = Supervisor(ctx, "worker", lambda: False)
    job._finish(claim, lease, JobLayout(Path("/nowhere")), Outcome("succeeded", student="rl_student"))
    named = f"student-first-try-{job_id.removeprefix('job_')}"
    with ctx.db.read() as session:
        assert jobs.get(session, job_id).student_id == named
        assert [row.id for row in students.of_job(session, job_id)] == [named, f"{named}.base"]


def _in_transaction(ctx: Context, write: Callable[[Session], Any]) -> Any:
    with ctx.db.begin() as session:
        return write(session)


def test_a_student_is_removed_once_and_only_its_last_row_frees_the_weights(ctx: Context) -> None:
    job_id = made(ctx)
    with ctx.db.begin() as session:
        for name, arm in (("one", "workflow"), ("two", "base")):
            students.register(session, student_id=name, job_id=job_id, arm=arm, path="/weights")
    with ctx.db.of("b").begin() as session, pytest.raises(NotFound):
        students.remove(session, "one")
    for name, alone in (("one", False), ("two", True)):
        with ctx.db.begin() as session:
            assert students.remove(session, name)[1] is alone
        with ctx.db.begin() as session, pytest.raises(NotFound):
            students.remove(session, name)


def test_a_suffix_that_grows_when_it_is_written_in_ascii_still_fits(database_url: str) -> None:  # noqa: ARG001
    from s2d.store import students

    name = students.id_of("job_" + "0" * 24, "compute_matched_raw_teacher_bridge", suffix="a" + "\u33af" * 63)
    assert len(name) < 200
    assert students.id_of("job_1", suffix="First try!") == "student-first-try-1"
