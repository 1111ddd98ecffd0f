"""Finds jobs whose worker is gone and messages that the broker lost."""

from __future__ import annotations

import logging
from collections.abc import Callable

from s2d.errors import NotFound, StageFailure
from s2d.events import NewEvent, Origin
from s2d.observe import bind
from s2d.plan.document import load_plan
from s2d.runner.events import unread
from s2d.runner.exclusive import Superseded, holder, this_host
from s2d.runner.handover import hand_over
from s2d.runner.layout import JobLayout
from s2d.services.context import Context
from s2d.store import jobs, outbox
from s2d.store.events import LeaseLost
from s2d.store.jobs import Moved
from s2d.store.states import FINAL
from worker.threads import Periodic

_log = logging.getLogger("s2d.worker")

#: A queued job's message is sent again after this many leases: the broker may have lost it.
RESEND_LEASES = 2


class Reaper(Periodic):
    def __init__(self, ctx: Callable[[], Context], lease_s: float) -> None:
        super().__init__("reaper", lease_s / 4)
        self._ctx = ctx

    def turn(self) -> None:
        ctx = self._ctx()
        settings = ctx.settings
        with ctx.db.begin() as session:
            moved = jobs.requeue_lost(session, settings.max_attempts, settings.backoff_s)
            outbox.resend_stale(session, RESEND_LEASES * settings.lease_s)
        for lost in moved:
            with bind(job_id=lost.job_id, epoch=lost.epoch):
                _log.warning("job %s lost its worker and is now %s", lost.job_id, lost.state)
                # A queued job's next claim does it.
                if lost.state != "queued":
                    _tidy(ctx, lost)
        for left in _left_behind(ctx):
            with bind(job_id=left.job_id, epoch=left.epoch):
                _tidy(ctx, left)


def _left_behind(ctx: Context) -> list[Moved]:
    """Jobs that nobody holds or waits for, and whose last process on this host has not been told to have ended: a
    reaper was killed itself before it had tidied."""
    found = []
    for folder in (ctx.settings.state_dir.absolute() / "jobs").glob("*"):
        last = holder(JobLayout(folder))
        if last is None or last.host != this_host():
            continue
        try:
            with ctx.db.read() as session:
                job = jobs.get(session, folder.name)
        except NotFound:  # of another database
            continue
        if job.state in (*FINAL, "paused"):
            found.append(Moved(job.id, job.state, job.epoch))
    return found


def _tidy(ctx: Context, lost: Moved) -> None:
    """What the lost worker left of a job that no worker will claim now, as a next claim would have found it."""
    job_id = lost.job_id
    layout = JobLayout(ctx.settings.job_dir(job_id))
    if not layout.plan.exists():
        return
    with ctx.db.read() as session:
        job = jobs.get(session, job_id)
    read = Origin.model_validate(job.events_read) if job.events_read else None
    missed = unread(layout, load_plan(layout.plan.read_text()).ids(), read)

    def tell(events: list[NewEvent]) -> None:
        with ctx.db.begin() as session:
            jobs.record_missed(session, job_id, lost.epoch, events)

    try:
        hand_over(layout, lost.epoch, missed, tell, lambda: None)
    except (Superseded, LeaseLost):
        _log.info("job %s was resumed meanwhile", job_id)
    except StageFailure as err:
        _log.error("job %s: %s", job_id, err)
