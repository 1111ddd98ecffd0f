"""What must be true of every job, whatever was killed: judged from its events and the files that its stages left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from s2d.runner.events import event_files, read_events
from s2d.runner.layout import JobLayout

Event = dict[str, Any]
#: Written by stages alone; the other types also come from whoever runs them.
OF_STAGES = ("metrics", "progress", "checkpoint", "gate", "evaluation")


def violations(events: Sequence[Event], layout: JobLayout, stages: Iterable[str]) -> list[str]:
    """All that is wrong with a job that has ended, in words.

    Args:
        events: every event of the job, as the API gives them.
        stages: the ids of its plan's stages, in order.
    """
    wrong = [*_numbered(events), *_one_process_at_a_time(events), *_each_success_once(events)]
    return [*wrong, *_nothing_missing(events, layout, list(stages))]


def processes(events: Iterable[Event]) -> list[tuple[str, int]]:
    """(state, pid) of each `process` event."""
    return [(one["data"]["state"], one["data"]["pid"]) for one in events if one["type"] == "process"]


def _numbered(events: Sequence[Event]) -> list[str]:
    numbers = [one["seq"] for one in events]
    whole = list(range(1, len(numbers) + 1))
    return [] if numbers == whole else [f"events are not numbered 1 to {len(numbers)}: {numbers}"]


def _one_process_at_a_time(events: Iterable[Event]) -> list[str]:
    """Each process that began is gone before the next one begins, and its end is told once.

    An end may come without a beginning: of a process whose worker was killed before it could tell of it.
    """
    wrong: list[str] = []
    alive: int | None = None
    ended: set[tuple[str, int]] = set()
    for one in (one for one in events if one["type"] == "process"):
        pid, which = one["data"]["pid"], (one["stage"], one["data"]["attempt"])
        if one["data"]["state"] == "started":
            wrong += [f"process {pid} began while {alive} had not ended"] if alive is not None else []
            alive = pid
            continue
        wrong += [f"process {pid} ended while {alive} was alive"] if alive not in (pid, None) else []
        wrong += [f"process {pid} ended twice"] if which in ended else []
        alive = None
        ended.add(which)
    return wrong if alive is None else [*wrong, f"process {alive} never ended"]


def _each_success_once(events: Iterable[Event]) -> list[str]:
    told = Counter(one["stage"] for one in events if one["type"] == "stage" and one["data"]["state"] == "succeeded")
    return [f"{stage} succeeded {times} times" for stage, times in told.items() if times > 1]


def _nothing_missing(events: Iterable[Event], layout: JobLayout, stages: list[str]) -> list[str]:
    """Every event that a stage wrote is stored once, in the order in which it was written."""
    files = [path for stage in stages for path in event_files(layout.stage(stage))]
    written = [_key(one) for path in files for one in read_events(path) if one["type"] in OF_STAGES]
    stored = [_key(one) for one in events if one["type"] in OF_STAGES]
    if written == stored:
        return []
    shorter = min(len(written), len(stored))
    first = next((n for n in range(shorter) if written[n] != stored[n]), shorter)
    return [f"{len(written)} events were written by stages, {len(stored)} stored; they differ from number {first} on"]


def _key(event: Event) -> str:
    return json.dumps([event[name] for name in ("type", "stage", "step", "message", "data")], sort_keys=True)
