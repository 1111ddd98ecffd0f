"""Keeps the disk that checkpoints take within what the settings allow. Every worker does it; a rename wins once.

Promises: nothing that a job could need goes while it may run. `remains` and checkpoints to resume from are renamed in a
transaction that holds the job as ended, so a resume comes either before, and they stay, or after, and finds none of
them; the event that says so is part of that transaction. Does not promise the event when the worker is killed, or the
database lost, between the renames and the commit.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from s2d.events import NewEvent
from s2d.plan.hardware import GIB
from s2d.runner import retention
from s2d.runner.layout import JobLayout
from s2d.runner.retention import Beyond, Ended, Leftover
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import events, jobs
from worker.threads import Periodic

INTERVAL_S = 60.0
DAY_S = 86_400
_log = logging.getLogger("s2d.worker")


class _Aside(NamedTuple):
    """What was set aside for deletion, and where it is now."""

    job_id: str
    what: Leftover
    place: Path


class Janitor(Periodic):
    def __init__(self, ctx: Callable[[], Context]) -> None:
        super().__init__("janitor", INTERVAL_S)
        self._ctx = ctx

    def turn(self) -> None:
        """Renames all that goes before it deletes any: deleting may take minutes, in which jobs are resumed."""
        ctx = self._ctx()
        settings = ctx.settings
        with ctx.db.read() as session:
            standing = jobs.endings(session)
        ended: list[Ended] = []
        gone: list[_Aside] = []
        for job_id, ended_s in standing:
            layout = JobLayout(settings.job_dir(job_id))
            gone += _set_aside(job_id, retention.spent(layout))
            if ended_s is not None:
                gone += _take_remains(ctx, job_id, retention.remains(layout))
                ended.append(Ended(job_id, ended_s, tuple(retention.resumable(layout))))
        budget, age = settings.checkpoint_budget_gib * GIB, settings.checkpoint_days * DAY_S
        for one in retention.beyond(ended, budget_bytes=budget, max_age_s=age):
            gone += _take_checkpoints(ctx, one)
        _remove(gone)


def _take_remains(ctx: Context, job_id: str, leftovers: list[Leftover]) -> list[_Aside]:
    if not leftovers:
        return []
    with ctx.db.begin() as session:
        return _set_aside(job_id, leftovers) if jobs.hold_ended(session, job_id) else []


def _take_checkpoints(ctx: Context, beyond: Beyond) -> list[_Aside]:
    job_id = beyond.job.job_id
    with ctx.db.begin() as session:
        if not jobs.hold_ended(session, job_id):
            return []
        gone = _set_aside(job_id, beyond.job.checkpoints)
        if gone:
            events.append(session, job_id, None, [_told(gone, beyond, ctx.settings)])
        return gone


def _told(gone: list[_Aside], beyond: Beyond, settings: Settings) -> NewEvent:
    """Why they went, and what resuming the job does without them."""
    # Stages run one after the other: only one can have begun and not ended.
    stage, names = gone[0].what.stage, [one.what.path.name for one in gone]
    size = sum(one.what.bytes for one in gone)
    why = {
        "age": f"the job ended more than {settings.checkpoint_days:g} days ago (S2D_CHECKPOINT_DAYS)",
        "budget": f"ended jobs had more than {settings.checkpoint_budget_gib:g} GiB (S2D_CHECKPOINT_BUDGET_GIB)",
    }[beyond.limit]
    message = (
        f"{', '.join(names)} of {stage} deleted, {size / GIB:.2f} GiB: {why}. "
        f"When the job is resumed, finished stages are kept and {stage} starts from its beginning."
    )
    data = {"limit": beyond.limit, "bytes": size, "checkpoints": names}
    return NewEvent(type="message", stage=stage, message=message, data=data)


def _set_aside(job_id: str, leftovers: Iterable[Leftover]) -> list[_Aside]:
    """What another worker took first is left out, and what cannot be renamed stays: it must not keep the rest."""
    gone = []
    for one in leftovers:
        try:
            place = retention.set_aside(one)
        except OSError as err:
            _log.warning("job %s: %s cannot be set aside: %s", job_id, one.path, err, extra=_about(job_id))
            continue
        if place is not None:
            gone.append(_Aside(job_id, one, place))
    return gone


def _remove(gone: list[_Aside]) -> None:
    freed: Counter[str] = Counter()
    for one in gone:
        try:
            retention.remove(one.place)
            freed[one.job_id] += one.what.bytes
        except OSError as err:
            _log.warning("job %s: %s cannot be deleted: %s", one.job_id, one.place, err, extra=_about(one.job_id))
    for job_id, size in freed.items():
        _log.info("job %s: %d bytes of leftovers freed", job_id, size, extra=_about(job_id))


def _about(job_id: str) -> dict[str, Any]:
    """What a log record of this job is given."""
    return {"s2d": {"job_id": job_id}}
