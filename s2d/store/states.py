"""The states of a job and every transition that is allowed, as one table."""

from __future__ import annotations

from typing import Literal, get_args

JobState = Literal["queued", "running", "pausing", "paused", "cancelling", "succeeded", "failed", "cancelled"]

#: from -> to. A state that is not a key here does not exist.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # Claimed by a worker; cancelled or held before anyone did.
    "queued": frozenset({"running", "paused", "cancelled"}),
    # Back to queued when its worker was lost or handed it back.
    "running": frozenset({"succeeded", "failed", "pausing", "cancelling", "queued"}),
    # Paused once its stage has saved a checkpoint and ended. A job that ends first has ended.
    "pausing": frozenset({"paused", "succeeded", "failed", "cancelling"}),
    "paused": frozenset({"queued", "cancelled"}),
    # Cancelled once the process group is gone. A job that finished first stays cancelled all the same.
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    # Resumed from the last whole checkpoint.
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}

STATES: tuple[JobState, ...] = get_args(JobState)
#: The job has ended; only its user can make it go on.
FINAL: frozenset[JobState] = frozenset({"succeeded", "failed", "cancelled"})
#: A worker has the job.
HELD: frozenset[JobState] = frozenset({"running", "pausing", "cancelling"})
#: A worker has the job and was asked to let it go.
STOPPING: frozenset[JobState] = frozenset({"pausing", "cancelling"})


def sources(target: JobState) -> tuple[JobState, ...]:
    """The states from which `target` may be reached."""
    return tuple(state for state, after in TRANSITIONS.items() if target in after)
