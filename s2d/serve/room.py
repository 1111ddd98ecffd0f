"""Who must go so that another student's server fits: a number of servers, and memory."""

from __future__ import annotations

from collections.abc import Sequence

from s2d.errors import Unavailable
from s2d.serve.settings import ServeSettings
from s2d.serve.slot import Slot

BUSY_RETRY_S = 5


def victims(settings: ServeSettings, slots: Sequence[Slot], need_gib: float) -> list[Slot]:
    """The idle servers to stop before one of `need_gib` is started, the least recently used first. Changes nothing.

    Raises:
        Unavailable: too many are busy (`students_busy`), or it fits into the budget by no means (`student_too_large`).
    """
    budget = settings.memory_gib
    if budget is not None and need_gib > budget:
        raise Unavailable(
            f"this student's server takes about {need_gib:.1f} GiB, and all of them may take {budget:g} GiB: "
            "raise S2D_SERVE_MEMORY_GIB",
            code="student_too_large",
        )
    leaving: list[Slot] = []
    candidates = sorted((slot for slot in slots if slot.idle()), key=lambda slot: slot.last_used)
    while not _fits(settings, [slot for slot in slots if slot not in leaving], need_gib):
        if not candidates:
            raise _busy(settings)
        leaving.append(candidates.pop(0))
    return leaving


def _fits(settings: ServeSettings, staying: Sequence[Slot], need_gib: float) -> bool:
    taken = sum(slot.memory_gib for slot in staying)
    enough = settings.memory_gib is None or taken + need_gib <= settings.memory_gib
    return enough and len(staying) < settings.max_servers


def _busy(settings: ServeSettings) -> Unavailable:
    memory = (
        "" if settings.memory_gib is None else f" or the {settings.memory_gib:g} GiB that they may take are used up"
    )
    return Unavailable(
        f"all {settings.max_servers} student servers are busy{memory}: try again in {BUSY_RETRY_S} s, or raise "
        "S2D_SERVE_MAX_SERVERS or S2D_SERVE_MEMORY_GIB",
        code="students_busy",
    )
