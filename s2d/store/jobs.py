"""Jobs: created once, claimed by compare-and-set, written only by whoever holds the newest epoch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from s2d.errors import FAILURE_CODES, Conflict, NotFound
from s2d.events import NewEvent, Origin, name_of
from s2d.observe import current_traceparent, span
from s2d.store import events, outbox
from s2d.store.database import db_now, endure_pauses
from s2d.store.events import LeaseLost
from s2d.store.ids import new_id
from s2d.store.pages import page
from s2d.store.states import FINAL, HELD, JobState, sources
from s2d.store.tables import JobRow
from s2d.store.versions import Expected, check


@dataclass(frozen=True)
class Claim:
    """The right to run a job until the lease ends; every write carries the epoch."""

    job_id: str
    epoch: int
    attempt: int
    traceparent: str | None = None


class Moved(NamedTuple):
    """A job that lost its worker: where it is now, and the epoch that fences that worker off."""

    job_id: str
    state: JobState
    epoch: int


@span("create job", kind="producer")
def create(
    session: Session, *, plan_id: str, file_id: str, name: str | None, request: dict[str, Any] | None = None
) -> JobRow:
    """A queued job and, in the same transaction, the message that will make a worker look at it.

    Args:
        request: what a client of the OpenAI surface sent.
    """
    row = JobRow(
        id=new_id("job"),
        name=name,
        plan_id=plan_id,
        file_id=file_id,
        state="queued",
        progress={},
        request=request,
        traceparent=current_traceparent(),
        created_at=db_now(),
    )
    session.add(row)
    session.flush()
    events.append(session, row.id, None, [_state_event("queued")])
    outbox.add(session, row.id)
    session.refresh(row)
    return row


def version(row: JobRow) -> str:
    """Changes whenever anything changes that a user can see of the job: each such change is an event too."""
    return f"{row.epoch}-{row.last_seq}"


def get(session: Session, job_id: str) -> JobRow:
    """Raises NotFound."""
    row = session.get(JobRow, job_id)
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.", code="job_not_found", param="job_id")
    return row


def list_page(
    session: Session, *, after: str | None, limit: int, state: JobState | None = None
) -> tuple[Sequence[JobRow], bool]:
    where = [JobRow.state == state] if state else []
    return page(session, JobRow, after=after, limit=limit, where=where)


def claim(session: Session, job_id: str, worker: str, lease_s: float) -> Claim | None:
    """Take a queued job whose time has come. None: somebody else has it, it is done, or it waits.

    A job whose worker let its lease run out is queued again first, see `requeue_lost`.
    """
    query = (
        update(JobRow)
        .where(JobRow.id == job_id, JobRow.state == "queued", outbox.due())
        .values(
            state="running",
            epoch=JobRow.epoch + 1,
            attempt=JobRow.attempt + 1,
            worker=worker,
            lease_expires_at=db_now() + lease_s,
            available_at=None,
        )
        .returning(JobRow.epoch, JobRow.attempt, JobRow.started_at, JobRow.traceparent)
    )
    row = session.execute(query).one_or_none()
    if row is None:
        return None
    if row.started_at is None:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(started_at=db_now()))
    event = _state_event("running", worker=worker, attempt=row.attempt, epoch=row.epoch)
    events.append(session, job_id, row.epoch, [event])
    return Claim(job_id, row.epoch, row.attempt, row.traceparent)


def heartbeat(session: Session, claim: Claim, lease_s: float) -> JobState:
    """Extend the lease; returns the state, in which a wish to cancel shows.

    Raises:
        LeaseLost: the lease ran out and somebody else claimed the job.
    """
    query = _held(claim).values(lease_expires_at=db_now() + lease_s).returning(JobRow.state)
    state: JobState | None = session.execute(query).scalar_one_or_none()
    if state is None:
        raise LeaseLost(claim.job_id)
    return state


def hold(session: Session, claim: Claim) -> None:
    """Make sure, until the transaction ends, that the job is still this claim's.

    Raises:
        LeaseLost: see `heartbeat`.
    """
    if session.execute(_held(claim).values(epoch=claim.epoch).returning(JobRow.id)).one_or_none() is None:
        raise LeaseLost(claim.job_id)


def record(
    session: Session, claim: Claim, progress: dict[str, Any], new: Sequence[NewEvent], write: str | None = None
) -> None:
    """Events and the progress they amount to, in one fenced write.

    Args:
        write: names this write. Where a connection broke after the commit and before its answer, the writer tries again
            what is there already: the same name twice in a row is stored once. None: it is not tried again.

    Raises:
        LeaseLost: see `heartbeat`.
    """
    before = session.execute(_held(claim).returning(JobRow.last_write).values(progress=progress)).one_or_none()
    if before is None:
        raise LeaseLost(claim.job_id)
    if write is not None and before.last_write == write:
        return
    if new:
        events.append(session, claim.job_id, claim.epoch, new)
    read = _last_origin(new)
    values = {"events_read": read.model_dump()} if read else {}
    session.execute(_held(claim).values(last_write=write, **values))


def record_missed(
    session: Session, job_id: str, epoch: int, missed: Sequence[NewEvent], since: Origin | None
) -> Origin | None:
    """Events of a job that nobody holds any more, found where its last worker was lost. What is told once
    (`s2d.events.name_of`) and was stored last is not stored again.

    Args:
        since: up to where they were stored when they were looked for.

    Returns:
        Up to where they are stored now.

    Raises:
        LeaseLost: somebody has claimed the job, or stored them, since.
    """
    columns = select(JobRow.events_read, JobRow.last_write)
    query = columns.where(JobRow.id == job_id, JobRow.epoch == epoch).with_for_update()
    row = session.execute(query).one_or_none()
    if row is None or row.events_read != (since.model_dump() if since else None):
        raise LeaseLost(job_id)
    write = name_of(missed)
    if write is not None and row.last_write == write:
        return since
    events.append(session, job_id, epoch, missed)
    read = _last_origin(missed) or since
    values = {"events_read": read.model_dump()} if read else {}
    session.execute(update(JobRow).where(JobRow.id == job_id).values(last_write=write, **values))
    return read


def _last_origin(new: Sequence[NewEvent]) -> Origin | None:
    return next((event.origin for event in reversed(new) if event.origin is not None), None)


def finish(
    session: Session,
    claim: Claim,
    state: JobState,
    *,
    error: dict[str, Any] | None = None,
    student_id: str | None = None,
    wait_s: float = 0.0,
) -> JobState:
    """End the job, or hand it back as queued. A job that is being cancelled ends cancelled, whatever came first.

    Args:
        wait_s: before it may be claimed again.

    Returns:
        The state it is in now.

    Raises:
        LeaseLost: see `heartbeat`.
    """
    current = session.execute(select(JobRow.state).where(JobRow.id == claim.job_id).with_for_update()).scalar_one()
    target = _settled(current, state)
    values: dict[str, Any] = {"state": target, "lease_expires_at": None, "worker": None, "error": error}
    if target == "cancelled":
        values["error"] = None
    elif student_id is not None:
        values["student_id"] = student_id
    if target in FINAL:
        values["finished_at"] = db_now()
    if target in ("queued", "paused"):
        # Handed back in order: no attempt was lost.
        values["attempt"] = JobRow.attempt - 1
    if target == "queued" and wait_s:
        values["available_at"] = db_now() + wait_s
    moved = _held(claim).where(JobRow.state.in_(sources(target))).values(**values).returning(JobRow.id)
    if session.execute(moved).one_or_none() is None:
        raise LeaseLost(claim.job_id)
    if target == "queued":
        outbox.add(session, claim.job_id)
    event = _state_event(target, error=error) if error else _state_event(target)
    events.append(session, claim.job_id, claim.epoch, [event])
    return target


def _settled(current: str, reached: JobState) -> JobState:
    """Where a worker leaves a job: a wish that came meanwhile decides what becomes of one that is handed back."""
    if current == "cancelling":
        return "cancelled"
    return "paused" if current == "pausing" and reached == "queued" else reached


def request_pause(session: Session, job_id: str, expected: Expected = None) -> JobRow:
    """Hold the job at once when no worker has it, else ask the worker to. Asking again changes nothing.

    Raises:
        NotFound, Conflict: the job has ended, or is being cancelled.
        Changed: it is in none of the versions that were expected.
    """
    row = _locked(session, job_id, expected)
    if row.state in ("paused", "pausing"):
        return row
    if row.state in FINAL or row.state == "cancelling":
        raise Conflict(f"Job {job_id!r} is {row.state}; there is nothing to pause.", code="job_finished")
    return _move(session, row, "paused" if row.state == "queued" else "pausing")


def request_resume(session: Session, job_id: str, expected: Expected = None) -> JobRow:
    """Queue a paused, failed or cancelled job again; it goes on from its last whole checkpoint, and its count of lost
    workers begins anew.

    Asking again while it waits or runs changes nothing.

    Raises:
        NotFound, Conflict: the job has succeeded, or a worker is still letting it go.
        Changed: it is in none of the versions that were expected.
    """
    row = _locked(session, job_id, expected)
    if row.state in ("queued", "running"):
        return row
    if row.state not in sources("queued"):
        raise Conflict(f"Job {job_id!r} is {row.state} and cannot be resumed.", code="not_resumable")
    row.attempt, row.losses, row.error, row.finished_at, row.available_at = 0, 0, None, None, None
    outbox.add(session, job_id)
    return _move(session, row, "queued")


def _locked(session: Session, job_id: str, expected: Expected) -> JobRow:
    row = session.execute(select(JobRow).where(JobRow.id == job_id).with_for_update()).scalar_one_or_none()
    if row is None:
        raise NotFound(f"There is no job {job_id!r}.", code="job_not_found", param="job_id")
    check(expected, version(row), f"Job {job_id!r} is {row.state} now")
    return row


def _move(session: Session, row: JobRow, target: JobState) -> JobRow:
    """A change that a user has asked for, and its event."""
    row.state = target
    session.flush()
    events.append(session, row.id, None, [_state_event(target)])
    session.refresh(row)
    return row


def request_cancel(session: Session, job_id: str, expected: Expected = None) -> JobRow:
    """Cancel at once when no worker has it, else ask the worker to. Asking again changes nothing.

    Raises:
        NotFound, Conflict: the job is already finished in another way.
        Changed: it is in none of the versions that were expected.
    """
    row = _locked(session, job_id, expected)
    if row.state in ("cancelled", "cancelling"):
        return row
    if row.state in FINAL:
        raise Conflict(f"Job {job_id!r} has already {row.state}; there is nothing to cancel.", code="job_finished")
    if row.state in HELD:
        return _move(session, row, "cancelling")
    row.finished_at = db_now()
    return _move(session, row, "cancelled")


def requeue_lost(session: Session, max_attempts: int, backoff_s: float = 0.0) -> list[Moved]:
    """What the reaper does: jobs whose lease ran out are queued again, given up, or what was asked of their worker.

    Args:
        max_attempts: a job is given up when it has lost so many workers in a row without getting further: a long one
            may lose more of them in its time, one that kills its workers must not go on for ever.
        backoff_s: a job waits so long when it has lost a worker, and twice as long for each further one in that row.

    Returns:
        Each job that moved.
    """
    lost = select(JobRow).where(JobRow.state.in_(HELD), JobRow.lease_expires_at < db_now())
    moved: list[Moved] = []
    for row in session.scalars(lost.with_for_update(skip_locked=True)).all():
        state = _requeue(session, row, max_attempts, backoff_s)
        moved.append(Moved(row.id, state, row.epoch))
    return moved


def _requeue(session: Session, row: JobRow, max_attempts: int, backoff_s: float) -> JobState:
    target = _settled(row.state, "queued")
    reached = events.reached(session, row.id)
    row.losses, row.reached = (1 if reached > row.reached else row.losses + 1), reached
    if target == "queued" and row.losses >= max_attempts:
        target, row.error = "failed", _lost(row)
    wait_s = backoff_s * 2.0 ** (row.losses - 1)
    row.available_at = db_now() + wait_s if target == "queued" and wait_s else None
    row.state = target
    # A new epoch at once: the lost worker, should it wake, can no longer write.
    row.epoch += 1
    lost_worker, row.worker, row.lease_expires_at = row.worker, None, None
    if target in FINAL:
        row.finished_at = db_now()
    session.flush()
    waits = {"wait_s": wait_s} if target == "queued" else {}
    error = {"error": row.error} if target == "failed" else {}
    event = _state_event(target, level="warn", lost_worker=lost_worker, **waits, **error)
    events.append(session, row.id, None, [event])
    if target == "queued":
        outbox.add(session, row.id)
    return target


def _lost(row: JobRow) -> dict[str, Any]:
    """The document of a failed job, see `s2d.runner.pipeline.failure`; the log is on the host that was lost."""
    return {
        "code": "lost_worker",
        "message": f"The worker was lost {row.losses} times without getting further; the last one was {row.worker}.",
        "advice": FAILURE_CODES["lost_worker"],
        "stage": row.progress.get("stage"),
        "step": row.progress.get("step"),
        "log": [],
    }


def _held(claim: Claim) -> Any:
    return update(JobRow).where(JobRow.id == claim.job_id, JobRow.epoch == claim.epoch, JobRow.state.in_(HELD))


def _state_event(state: JobState, level: str = "info", **data: Any) -> NewEvent:
    return NewEvent(type="state", level=level, message=f"job {state}", data={"state": state, **data})


def now(session: Session) -> float:
    """Seconds since the epoch on the clock that leases are kept by."""
    return float(session.scalars(select(db_now())).one())


def endings(session: Session) -> list[tuple[str, float | None]]:
    """Every job and the seconds since it ended, on the database's clock; None for one that may still run."""
    rows = session.execute(select(JobRow.id, JobRow.state, (db_now() - JobRow.finished_at).label("ended_s")))
    return [(row.id, row.ended_s if row.state in FINAL else None) for row in rows]


def hold_ended(session: Session, job_id: str) -> bool:
    """Whether the job has ended; if so, nobody resumes it until the transaction ends (`begin`, not `read`)."""
    endure_pauses(session)
    query = select(JobRow.id).where(JobRow.id == job_id, JobRow.state.in_(FINAL)).with_for_update()
    return session.execute(query).one_or_none() is not None
