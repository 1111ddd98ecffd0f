"""Runs one job under a lease: claim, pipeline, heartbeat, the end. Every write is fenced by the claim's epoch.

Promises: a supervisor that lost its lease writes nothing more and kills its stage; a job that it cannot finish goes
back to the queue. Does not promise that a stage ends before another worker claims the job: that is the stage's own
watch over the heartbeat file, whose patience is shorter than the lease.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from s2d.atomic import make_folder
from s2d.errors import S2DError, StageFailure, is_disk_full
from s2d.events import NewEvent, Origin, name_of
from s2d.observe import OFF, Attributes, Span, Tracing, bind
from s2d.plan.document import read_plan
from s2d.plan.graph import Account
from s2d.plan.recheck import check_models_again
from s2d.runner import child
from s2d.runner.child import Wish
from s2d.runner.events import unread
from s2d.runner.layout import JobLayout
from s2d.runner.observed import remember
from s2d.runner.pipeline import Outcome, Pipeline, failure
from s2d.services.context import Context
from s2d.services.progress import Progress
from s2d.store import events, jobs, ledger, plans, students
from s2d.store.database import DATABASE_AWAY
from s2d.store.events import LeaseLost
from s2d.store.jobs import Claim
from s2d.store.states import STOPPING, JobState
from s2d.store.tables import JobRow
from worker.graduates import graduates
from worker.tracker import Tracker

_log = logging.getLogger("s2d.worker")

#: Share of the lease after which it is renewed, and share for which a stage trusts a silent supervisor.
RENEW, TRUST = 1 / 6, 0.7


class Supervisor:
    def __init__(self, ctx: Context, worker: str, draining: Callable[[], bool], tracing: Tracing = OFF) -> None:
        self._ctx = ctx
        self._worker = worker
        self._draining = draining
        self._tracing = tracing

    def run(self, job_id: str) -> JobState | None:
        """Run the job to its end if it can be claimed.

        Returns:
            The state it was left in; None when somebody else has it now or it needs no worker.
        """
        with self._ctx.db.begin() as session:
            claim = jobs.claim(session, job_id, self._worker, self._ctx.settings.lease_s)
        if claim is None:
            return None
        about: Attributes = {"s2d.job.id": job_id, "s2d.epoch": claim.epoch, "s2d.attempt": claim.attempt}
        with (
            bind(job_id=job_id, epoch=claim.epoch),
            self._tracing.span("run job", kind="consumer", parent=claim.traceparent, attributes=about) as span,
        ):
            return self._claimed(claim, span)

    def _claimed(self, claim: Claim, span: Span) -> JobState | None:
        _log.info("job %s claimed, epoch %d", claim.job_id, claim.epoch)
        try:
            state = self._supervise(claim)
        except LeaseLost:
            _log.warning("job %s, epoch %d: the lease is lost; its stage was ended", claim.job_id, claim.epoch)
            span.fail("the lease is lost")
            return None
        span.set({"s2d.job.state": state})
        if state == "failed":
            span.fail("the job failed")
        return state

    def _supervise(self, claim: Claim) -> JobState:
        layout = JobLayout(self._ctx.settings.job_dir(claim.job_id))
        heartbeat = layout.heartbeat(claim.epoch)
        with _Lease(self._ctx, claim, heartbeat) as lease:
            outcome = self._pipeline(claim, lease, layout, heartbeat)
            return self._finish(claim, lease, layout, outcome)

    def _pipeline(self, claim: Claim, lease: _Lease, layout: JobLayout, heartbeat: Path) -> Outcome:
        settings = self._ctx.settings
        try:
            # Before the stage that watches it.
            make_folder(heartbeat.parent)
            heartbeat.touch()
            job, document = lease.persist(partial(_job, claim.job_id))
            plan = read_plan(document)
            tracker = Tracker(plan, Progress.model_validate(job.progress))
            read = Origin.model_validate(job.events_read) if job.events_read else None
            host = _Host(self._ctx, claim, lease, tracker, self._draining, read)
            rows = settings.file_dir(job.file_id) / "rows.jsonl"
            # The plan may be older than the policy, and the folder may have changed since.
            check_models_again(plan, settings.model_policy)
            pipeline = Pipeline(
                plan,
                rows,
                layout,
                host,
                grace_s=settings.grace_s,
                heartbeat=heartbeat,
                heartbeat_timeout_s=TRUST * settings.lease_s,
                command=stage_command(settings.stage_command),
            )
            outcome = pipeline.run()
            if outcome.state == "succeeded":
                remember(settings.state_dir, plan, layout)
            return outcome
        except S2DError as err:
            return Outcome("failed", error=failure(err))
        except LeaseLost:
            raise
        except Exception as err:
            _log.exception("job %s: the pipeline itself failed", claim.job_id)
            return Outcome("failed", error=failure(_named(err)))

    def _finish(self, claim: Claim, lease: _Lease, layout: JobLayout, outcome: Outcome) -> JobState:
        state: JobState = "queued" if outcome.state == "interrupted" else outcome.state
        left, remarks = graduates(layout) if outcome.student else ([], [])

        def write(session: Session) -> JobState:
            suffix = (jobs.get(session, claim.job_id).request or {}).get("suffix")
            student = students.id_of(claim.job_id, suffix=suffix) if outcome.student else None
            ended = jobs.finish(session, claim, state, error=outcome.error, student_id=student, wait_s=outcome.wait_s)
            if ended == "succeeded":
                for arm, path in left:
                    named = students.id_of(claim.job_id, arm, suffix=suffix)
                    students.register(session, student_id=named, job_id=claim.job_id, arm=arm, path=str(path))
                events.append(session, claim.job_id, claim.epoch, remarks)
            return ended

        ended = lease.persist(write)
        _log.info("job %s %s", claim.job_id, ended)
        return ended


def stage_command(chosen: tuple[str, ...]) -> Callable[[int], list[str]]:
    """The program that runs a stage on so many devices: the operator's for one, else s2d's own."""
    return lambda devices: list(chosen) if chosen and devices == 1 else child.stage_command(devices)


def _job(job_id: str, session: Session) -> tuple[JobRow, dict[str, Any]]:
    """The job, and its plan's document."""
    job = jobs.get(session, job_id)
    return job, plans.get(session, job.plan_id).document


def _named(err: Exception) -> S2DError:
    """What went wrong in the worker itself, as a job can carry it."""
    message = f"{type(err).__name__}: {err}"
    return StageFailure(message, code="disk_full") if is_disk_full(err) else S2DError(message)


class _Lease:
    """Renews the lease in a thread, and touches the heartbeat file. `lost` when somebody else has the job, or when it
    can no longer be renewed."""

    def __init__(self, ctx: Context, claim: Claim, heartbeat: Path) -> None:
        self._ctx = ctx
        self._claim = claim
        self._heartbeat = heartbeat
        self._length_s = ctx.settings.lease_s
        self._ended = threading.Event()
        self._renewed = time.monotonic()
        # In a copy of the context, so that its log lines tell the job too.
        renew = partial(copy_context().run, self._renew)
        self._thread = threading.Thread(target=renew, name=f"lease-{claim.job_id}", daemon=True)
        self._lost = False
        self.stopping = False

    def __enter__(self) -> _Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        # One that stays does no harm: its name has the epoch.
        with suppress(OSError):
            self._heartbeat.unlink()

    @property
    def lost(self) -> bool:
        return self._lost or time.monotonic() - self._renewed > self._length_s

    def persist(self, write: Callable[[Session], Any]) -> Any:
        """Do `write` in a transaction, again while the database is away, until the lease is lost.

        Raises:
            LeaseLost
        """
        while True:
            try:
                with self._ctx.db.begin() as session:
                    return write(session)
            except DATABASE_AWAY:
                _log.warning("job %s: the database did not answer; trying again", self._claim.job_id)
                if self.lost:
                    raise LeaseLost(self._claim.job_id) from None
                time.sleep(0.5)

    def _renew(self) -> None:
        while not self._ended.wait(self._length_s * RENEW):
            started = time.monotonic()
            try:
                with self._ctx.db.begin() as session:
                    state = jobs.heartbeat(session, self._claim, self._length_s)
            except LeaseLost:
                self._lost = True
                return
            except DATABASE_AWAY:
                _log.warning("job %s: the lease could not be renewed this time", self._claim.job_id)
                continue
            except Exception:
                # Whatever it was may pass; a lease that nobody renews costs the job its worker.
                _log.exception("job %s: the lease could not be renewed this time", self._claim.job_id)
                continue
            # Counted from before the write: the lease in the database cannot end sooner than we believe.
            self._renewed = started
            self.stopping = state in STOPPING
            self._touch()

    def _touch(self) -> None:
        # The lease in the database is what counts; a stage whose file grows old ends itself.
        try:
            self._heartbeat.touch()
        except OSError as err:
            _log.warning("job %s: the heartbeat file could not be touched: %s", self._claim.job_id, err)


class _Host:
    """What the pipeline sees of the service."""

    def __init__(
        self,
        ctx: Context,
        claim: Claim,
        lease: _Lease,
        tracker: Tracker,
        draining: Callable[[], bool],
        read: Origin | None,
    ) -> None:
        self.epoch: int | None = claim.epoch
        self._read = read
        self._ctx = ctx
        self._claim = claim
        self._lease = lease
        self._tracker = tracker
        self._draining = draining

    def missed(self, layout: JobLayout, stages: Iterable[str]) -> Iterable[list[NewEvent]]:
        return unread(layout, stages, self._read)

    def events(self, events: list[NewEvent]) -> None:
        """Raises LeaseLost."""
        progress, write = self._tracker.take(events), name_of(events) or uuid.uuid4().hex
        self._lease.persist(lambda session: jobs.record(session, self._claim, progress, events, write))

    def wish(self) -> Wish:
        if self._lease.lost:
            raise LeaseLost(self._claim.job_id)
        return "stop" if self._lease.stopping or self._draining() else "run"

    def spend(self, account: Account, role: str, labels: Sequence[str]) -> None:
        """Write the labels into the ledger before the stage reads them. Raises Conflict and LeaseLost."""
        self._lease.persist(lambda session: ledger.spend(session, self._claim, account, role, labels))
