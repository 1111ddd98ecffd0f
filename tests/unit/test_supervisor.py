"""What happens to a supervisor that has nothing to do with its stages: its database goes away, its disk is full."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from store_testing import filled, held, new_job
from tiny import DEMO, labels, plan_for

from s2d.runner.pipeline import Outcome
from s2d.services import files
from s2d.services.context import Context, open_context
from s2d.settings import Settings
from s2d.store import jobs, plans
from worker import supervisor
from worker.supervisor import Supervisor, _Lease

LEASE_S = 3.0


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    context = open_context(Settings(state_dir=tmp_path / "state", model_roots=(DEMO,)))
    yield context
    context.db.close()


@pytest.fixture
def job(ctx: Context, tmp_path: Path) -> str:
    upload = labels(tmp_path / "upload.jsonl")
    with upload.open("rb") as stream:
        file = files.upload(ctx, stream, filename="a.jsonl", purpose="fine-tune")
    plan = plan_for(upload)
    with ctx.db.begin() as session:
        plans.put(session, plan)
        return jobs.create(session, plan_id=plan.id, file_id=file.id, name=None).id


def pipeline_that(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Outcome]) -> None:
    class Fake:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def run(self) -> Outcome:
            return run()

    monkeypatch.setattr(supervisor, "Pipeline", Fake)


def error_of(ctx: Context, job: str) -> dict[str, Any]:
    with ctx.db.read() as session:
        found = jobs.get(session, job)
    assert found.state == "failed"
    assert found.error is not None
    return found.error


def test_a_database_that_restarts_right_after_the_claim_fails_no_job(
    ctx: Context, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed, lost = jobs.claim, threading.Event(), []

    def note(*arguments: Any) -> Any:
        taken = claim(*arguments)
        claimed.set()
        return taken

    def breaking(transaction: Callable[[], AbstractContextManager[Session]]) -> Callable[[], Any]:
        @contextmanager
        def begin() -> Iterator[Session]:
            if claimed.is_set() and not lost:
                lost.append(True)
                raise OperationalError("SELECT", None, ConnectionResetError())
            with transaction() as session:
                yield session

        return begin

    monkeypatch.setattr(jobs, "claim", note)
    for name in ("read", "begin"):
        monkeypatch.setattr(ctx.db, name, breaking(getattr(ctx.db, name)))
    pipeline_that(monkeypatch, lambda: Outcome("interrupted"))
    assert Supervisor(ctx, "here", lambda: False).run(job) == "queued"
    assert lost


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "stage_failed")]
)
def test_a_disk_that_is_full_for_the_worker_itself_is_named(
    number: int, code: str, ctx: Context, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> Outcome:
        raise OSError(number, os.strerror(number), "plan.json")

    pipeline_that(monkeypatch, fail)
    assert Supervisor(ctx, "here", lambda: False).run(job) == "failed"
    error = error_of(ctx, job)
    assert error["code"] == code
    assert os.strerror(number) in error["message"]


def test_without_room_for_its_folder_a_job_fails_at_once(
    ctx: Context, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path.mkdir

    def refuse(self: Path, *arguments: Any, **named: Any) -> None:
        if self == ctx.settings.job_dir(job):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        whole(self, *arguments, **named)

    monkeypatch.setattr(Path, "mkdir", refuse)
    pipeline_that(monkeypatch, lambda: pytest.fail("nothing is begun"))
    assert Supervisor(ctx, "here", lambda: False).run(job) == "failed"
    assert error_of(ctx, job)["code"] == "disk_full"
    assert not [one for one in threading.enumerate() if one.name == f"lease-{job}"]


def test_the_heartbeat_file_is_there_before_the_stages_and_gone_after_them(
    ctx: Context, job: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    heartbeat, seen = ctx.settings.job_dir(job) / "heartbeat-1", []

    def look() -> Outcome:
        seen.append(heartbeat.exists())
        return Outcome("interrupted")

    pipeline_that(monkeypatch, look)
    assert Supervisor(ctx, "here", lambda: False).run(job) == "queued"
    assert seen == [True]
    assert not heartbeat.exists()


def test_a_heartbeat_file_that_cannot_be_touched_costs_no_lease(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder is not there for a while, as before a job's first file."""
    settings = Settings(state_dir=tmp_path, lease_s=LEASE_S)
    with filled(settings.database) as db:
        claim = held(db, new_job(db), LEASE_S)
        heartbeat = tmp_path / "jobs" / claim.job_id / "heartbeat-1"
        with _Lease(Context(settings, db), claim, heartbeat) as lease:
            wait_for(lambda: caplog.text.count("could not be touched") >= 2)
            heartbeat.parent.mkdir(parents=True)
            wait_for(heartbeat.exists)
            assert not lease.lost
        assert not heartbeat.exists()


def test_a_lease_is_renewed_again_whatever_kept_it_from_that_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(state_dir=tmp_path, lease_s=LEASE_S)
    whole, breaks = jobs.heartbeat, iter(range(2))

    def heartbeat(*arguments: Any) -> Any:
        if next(breaks, None) is not None:
            raise ValueError("unforeseen")
        return whole(*arguments)

    monkeypatch.setattr(jobs, "heartbeat", heartbeat)
    with filled(settings.database) as db:
        claim = held(db, new_job(db), LEASE_S)
        heartbeat_file = tmp_path / "heartbeat"
        with _Lease(Context(settings, db), claim, heartbeat_file) as lease:
            wait_for(heartbeat_file.exists)
            assert not lease.lost
    assert caplog.text.count("ValueError: unforeseen") == 2


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)
