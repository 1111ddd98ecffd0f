"""Finds jobs whose worker is gone."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

from sqlalchemy.orm import Session

from s2d.errors import NotFound, StageFailure
from s2d.events import NewEvent, Origin
from s2d.observe import bind
from s2d.plan.document import load_plan
from s2d.runner.events import unread
from s2d.runner.exclusive import StillHeld, Superseded, free, holder, this_host
from s2d.runner.handover import hand_over
from s2d.runner.layout import JobLayout
from s2d.services.context import Context
from s2d.store import jobs, outbox
from s2d.store.events import LeaseLost
from s2d.store.jobs import Moved
from s2d.store.states import FINAL
from worker.threads import Periodic

_log = logging.getLogger("s2d.worker")

#: For a process that was killed to be gone; one that hangs is looked at again at the next turn.
PATIENCE_S = 1.0


class Reaper(Periodic):
    def __init__(self, ctx: Callable[[], Context], lease_s: float) -> None:
        super().__init__("reaper", lease_s / 4)
        self._ctx = ctx
        self._lease_s = lease_s
        #: The database's clock minus ours, seconds, at the last turn.
        self._ahead_s: float | None = None

    def turn(self) -> None:
        ctx = self._ctx()
        settings = ctx.settings
        with ctx.db.begin() as session:
            late = self._slept(session)
            moved = [] if late else jobs.requeue_lost(session, settings.max_attempts, settings.backoff_s)
            outbox.drop_needless(session)
        for lost in moved:
            with bind(job_id=lost.job_id, epoch=lost.epoch):
                _log.warning("job %s lost its worker and is now %s", lost.job_id, lost.state)
                # A queued job's next claim does it.
                if lost.state != "queued":
                    _tidy(ctx, lost)
        for left in _left_behind(ctx):
            with bind(job_id=left.job_id, epoch=left.epoch):
                _tidy(ctx, left)

    def _slept(self, session: Session) -> bool:
        """Whether the database's clock has run ahead of ours since the last turn: this host was suspended, or that
        clock was set. Leases then look as if they had run out that their workers only need a moment to renew."""
        ahead_s = jobs.now(session) - time.monotonic()
        before, self._ahead_s = self._ahead_s, ahead_s
        return before is not None and ahead_s - before > self._lease_s / 2


def _left_behind(ctx: Context) -> Iterator[Moved]:
    """Jobs that nobody holds or waits for, and whose last process has not been told to have ended: a reaper was killed
    itself before it had tidied, or a job was cancelled while it waited for its next claim."""
    for folder in (ctx.settings.state_dir.absolute() / "jobs").glob("*/"):
        layout = JobLayout(folder)
        if _told(layout):
            continue
        try:
            with ctx.db.read() as session:
                job = jobs.get(session, folder.name)
        except NotFound:  # of another database
            continue
        if job.state in (*FINAL, "paused") and _within_reach(layout):
            yield Moved(job.id, job.state, job.epoch)


def _told(layout: JobLayout) -> bool:
    """Whether the end of every process that is known of was told."""
    try:
        return holder(layout) is None
    except (OSError, ValueError):
        # One damaged folder must not keep the reaper from all others.
        _log.exception("%s cannot be looked at", layout.root)
        return True


def _within_reach(layout: JobLayout) -> bool:
    """Whether the process can be ended from here, or is surely gone."""
    last = holder(layout)
    return last is not None and (last.host == this_host() or free(layout))


def _tidy(ctx: Context, lost: Moved) -> None:
    try:
        _hand_over(ctx, lost)
    except Exception:
        # A damaged folder of one job must not keep the reaper from all others.
        _log.exception("job %s cannot be tidied", lost.job_id)


def _hand_over(ctx: Context, lost: Moved) -> None:
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
        nonlocal read
        with ctx.db.begin() as session:
            read = jobs.record_missed(session, job_id, lost.epoch, events, read)

    try:
        hand_over(layout, lost.epoch, missed, tell, lambda: None, last_patience_s=PATIENCE_S)
    except StillHeld as err:
        _log.warning("job %s is not tidied yet: %s", job_id, err)
    except (Superseded, LeaseLost):
        _log.info("job %s was resumed or tidied by somebody else meanwhile", job_id)
    except StageFailure as err:
        _log.error("job %s: %s", job_id, err)
