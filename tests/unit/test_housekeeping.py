"""What a worker does beside its jobs: no message too many at the broker, no lease reaped that only looks lost."""

from __future__ import annotations

import dataclasses
import fcntl
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.exceptions import OperationalError
from sqlalchemy.exc import OperationalError as DatabaseLost
from sqlalchemy.orm import Session
from store_testing import filled, held, new_job
from tiny import labels, plan_for

from s2d.embedded.redis import PrivateRedis
from s2d.events import NewEvent
from s2d.runner.exclusive import Holder, this_host
from s2d.runner.layout import JobLayout
from s2d.runner.task import ProcessId
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import events, jobs
from worker import celery_app
from worker.outbox import RESEND_LEASES, Outbox, Resend
from worker.reaper import Reaper
from worker.supervisor import _Host, _Lease

LEASE_S = 0.02


@dataclass
class Broker:
    """Keeps messages that no worker has time for."""

    messages: list[str] = field(default_factory=list)
    away: bool = False

    def held(self) -> int:
        if self.away:
            raise OperationalError("away")
        return len(self.messages)


@pytest.fixture
def ctx(tmp_path: Path) -> Iterator[Context]:
    settings = Settings(state_dir=tmp_path, lease_s=LEASE_S, backoff_s=0)
    with filled(settings.database) as db:
        yield Context(settings, db)


def state(ctx: Context, job_id: str) -> str:
    with ctx.db.read() as session:
        return jobs.get(session, job_id).state


def test_messages_do_not_pile_up_behind_busy_workers_and_lost_ones_are_sent_again(ctx: Context) -> None:
    broker = Broker()
    send = Outbox(lambda: ctx, lambda message: broker.messages.append(message.job_id))
    again = Resend(lambda: ctx, LEASE_S, broker.held)
    ids = sorted(new_job(ctx.db) for _ in range(3))

    def turns() -> list[str]:
        for _ in range(5):
            time.sleep(RESEND_LEASES * LEASE_S)
            again.turn()
            send.turn()
        return sorted(broker.messages)

    send.turn()
    assert turns() == ids
    broker.messages.clear()
    assert turns() == ids


def test_nothing_is_sent_again_while_the_broker_is_away(ctx: Context, caplog: pytest.LogCaptureFixture) -> None:
    new_job(ctx.db)
    Resend(lambda: ctx, LEASE_S, Broker(away=True).held).turn()
    assert "the broker cannot be asked" in caplog.text


def cancelled(ctx: Context) -> str:
    job_id = new_job(ctx.db)
    with ctx.db.begin() as session:
        jobs.request_cancel(session, job_id)
    return job_id


def leave(ctx: Context, job_id: str, holder: str, plan: str) -> JobLayout:
    """What the last claim of a job has left of it."""
    layout = JobLayout(ctx.settings.job_dir(job_id))
    layout.stage("teacher_rl").mkdir(parents=True)
    layout.plan.write_text(plan)
    layout.holder.write_text(holder)
    return layout


def process_of(host: str) -> str:
    process = ProcessId(pid=2**22, started=0.0)
    return Holder(stage="teacher_rl", attempt=1, host=host, process=process).model_dump_json()


def messages(ctx: Context, job_id: str) -> list[str]:
    with ctx.db.read() as session:
        return [row.message for row in events.since(session, job_id, 0, 100)]


def test_a_job_that_cannot_be_tidied_keeps_the_reaper_from_no_other(
    ctx: Context, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [cancelled(ctx) for _ in range(2)]
    for job_id in ids:
        leave(ctx, job_id, process_of(this_host()), plan="damaged")
    leave(ctx, "other", "damaged", plan="damaged")
    (ctx.settings.state_dir / "jobs" / "note.txt").touch()
    Reaper(lambda: ctx, LEASE_S).turn()
    assert all(f"job {job_id} cannot be tidied" in caplog.text for job_id in ids)
    assert f"{ctx.settings.job_dir('other').absolute()} cannot be looked at" in caplog.text
    assert "note.txt" not in caplog.text


def test_a_job_that_was_cancelled_before_its_own_host_tidied_it_is_tidied_by_another(
    ctx: Context, tmp_path: Path
) -> None:
    job_id = cancelled(ctx)
    layout = leave(ctx, job_id, process_of("elsewhere"), plan_for(labels(tmp_path / "rows.jsonl")).model_dump_json())
    (layout.stage("teacher_rl") / "events-001.jsonl").write_text('{"type": "message", "message": "last words"}\n')
    reap = Reaper(lambda: ctx, LEASE_S)
    with layout.trainer_lock.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        reap.turn()
    assert messages(ctx, job_id) == ["job queued", "job cancelled"], "its process may be alive there"
    reap.turn()
    assert messages(ctx, job_id)[2:] == ["last words", f"process {2**22} ended"]
    assert not layout.holder.exists()


def test_after_a_sleep_of_the_host_its_workers_have_a_moment_to_renew(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    reap = Reaper(lambda: ctx, 30.0)
    reap.turn()
    taken = held(ctx.db, new_job(ctx.db), lease_s=-1)
    awake = jobs.now
    monkeypatch.setattr(jobs, "now", lambda session: awake(session) + 3600)
    reap.turn()
    assert state(ctx, taken.job_id) == "running"
    reap.turn()
    assert state(ctx, taken.job_id) == "queued", "one moment, no more"


def test_events_whose_commit_was_not_heard_of_are_stored_once(
    ctx: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, begin, breaks = held(ctx.db, new_job(ctx.db)), ctx.db.begin, iter([True])

    @contextmanager
    def breaking() -> Iterator[Session]:
        with begin() as session:
            yield session
        if next(breaks, False):
            raise DatabaseLost("COMMIT", None, ConnectionResetError())

    monkeypatch.setattr(ctx.db, "begin", breaking)
    lease: Any = _Lease(dataclasses.replace(ctx, settings=Settings(lease_s=60)), taken, tmp_path / "heartbeat")
    tracker: Any = SimpleNamespace(take=lambda _: {})
    host = _Host(ctx, taken, lease, tracker, lambda: False, None)
    for message in ("a", "b"):
        host.events([NewEvent(type="message", message=message)])
    assert messages(ctx, taken.job_id)[2:] == ["a", "b"]


def test_what_is_told_again_by_whoever_comes_after_a_death_is_stored_once(ctx: Context, tmp_path: Path) -> None:
    """The worker was killed when the database had it and before its own note of that."""
    taken = held(ctx.db, new_job(ctx.db))
    lease: Any = _Lease(dataclasses.replace(ctx, settings=Settings(lease_s=60)), taken, tmp_path / "heartbeat")
    tracker: Any = SimpleNamespace(take=lambda _: {})
    told = [("process", {"state": "ended", "attempt": 1}), ("stage", {"state": "succeeded"})]
    for kind, data in told:
        for status in (0, None):
            host = _Host(ctx, taken, lease, tracker, lambda: False, None)
            event: dict[str, Any] = {"type": kind, "stage": "a", "message": kind, "data": {**data, "status": status}}
            host.events([NewEvent(**event)])
    host.events([NewEvent(type="process", stage="a", message="next", data={"state": "ended", "attempt": 2})])
    assert messages(ctx, taken.job_id)[2:] == ["process", "stage", "next"]


def test_the_broker_is_asked_for_what_it_holds_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    server = PrivateRedis.make()
    app = celery_app.make_app(Settings(redis_url=server.url))
    with pytest.raises(OperationalError):
        celery_app.held(app)
    process = subprocess.Popen(server.command(), stdout=subprocess.DEVNULL)
    try:
        while not server.socket.exists() or not server.answers():
            assert process.poll() is None
            time.sleep(0.02)
        assert celery_app.held(app) == 0
        for priority in (celery_app.BEGUN, celery_app.FRESH, celery_app.FRESH):
            app.send_task(celery_app.TASK, args=["job_1"], priority=priority)
        assert celery_app.held(app) == 3
        monkeypatch.setattr(celery_app, "BROKER_PATIENCE_S", 0.5)
        process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(OperationalError):
            celery_app.held(app)
        assert time.monotonic() - began < 30, "it would be for ever"
    finally:
        app.close()
        process.kill()
        process.wait()
        server.remove()
