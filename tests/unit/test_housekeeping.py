"""What a worker does beside its jobs: no message too many at the broker, no lease reaped that only looks lost."""

from __future__ import annotations

import dataclasses
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
    send = Outbox(lambda: ctx, broker.messages.append)
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


def test_a_job_that_cannot_be_tidied_keeps_the_reaper_from_no_other(
    ctx: Context, caplog: pytest.LogCaptureFixture
) -> None:
    ids = [new_job(ctx.db) for _ in range(2)]
    with ctx.db.begin() as session:
        for job_id in ids:
            jobs.request_cancel(session, job_id)
    for job_id in ids:
        layout = JobLayout(ctx.settings.job_dir(job_id))
        layout.root.mkdir(parents=True)
        layout.plan.write_text("damaged")
        gone = Holder(stage="a", attempt=1, host=this_host(), process=ProcessId(pid=2**22, started=0.0))
        layout.holder.write_text(gone.model_dump_json())
    Reaper(lambda: ctx, LEASE_S).turn()
    assert all(f"job {job_id} cannot be tidied" in caplog.text for job_id in ids)


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
    with ctx.db.read() as session:
        stored = [row.message for row in events.since(session, taken.job_id, 0, 100) if row.type == "message"]
    assert stored == ["a", "b"]


def test_the_broker_is_asked_for_what_it_holds_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(celery_app, "BROKER_PATIENCE_S", 0.5)
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
        for _ in range(3):
            app.send_task(celery_app.TASK, args=["job_1"])
        assert celery_app.held(app) == 3
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
