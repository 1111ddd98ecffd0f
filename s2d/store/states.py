"""The states of a job and every transition that is allowed, as one table."""

from __future__ import annotations

from typing import Literal, get_args

JobState = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]

#: from -> to. A state that is not a key here does not exist; one without successors is final.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    # Claimed by a worker; cancelled before anyone did.
    "queued": frozenset({"running", "cancelled"}),
    # Back to queued when its worker was lost or handed it back.
    "running": frozenset({"succeeded", "failed", "cancelling", "queued"}),
    # Cancelled once the process group is gone. A job that finished first stays cancelled all the same.
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

STATES: tuple[JobState, ...] = get_args(JobState)
FINAL: frozenset[JobState] = frozenset(state for state, after in TRANSITIONS.items() if not after)


def sources(target: JobState) -> tuple[JobState, ...]:
    """The states from which `target` may be reached."""
    return tuple(state for state, after in TRANSITIONS.items() if target in after)
