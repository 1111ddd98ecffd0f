"""What judges the soak and the fault tests sees what it is there for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.invariants import Event, violations
from s2d.runner.layout import JobLayout

WRITTEN = [{"type": "metrics", "stage": "a", "step": step, "message": "", "data": {}} for step in (1, 2)]


def process(state: str, pid: int) -> Event:
    return {
        "type": "process",
        "stage": "a",
        "step": None,
        "message": "",
        "data": {"state": state, "pid": pid, "attempt": pid},
    }


SUCCESS: dict[str, Any] = {"type": "stage", "stage": "a", "step": None, "message": "", "data": {"state": "succeeded"}}
WHOLE = [process("started", 1), *WRITTEN, process("ended", 1), SUCCESS]


@pytest.fixture
def layout(tmp_path: Path) -> JobLayout:
    layout = JobLayout(tmp_path)
    for number, event in zip((999, 1000), WRITTEN, strict=True):
        layout.stage("a").mkdir(parents=True, exist_ok=True)
        (layout.stage("a") / f"events-{number}.jsonl").write_text(json.dumps(event) + "\n")
    return layout


def numbered(events: list[Event]) -> list[Event]:
    return [{**event, "seq": seq} for seq, event in enumerate(events, 1)]


def test_nothing_is_wrong_with_a_whole_job(layout: JobLayout) -> None:
    assert violations(numbered(WHOLE), layout, ["a"]) == []
    untold = process("ended", 7)
    assert violations(numbered([untold, *WHOLE]), layout, ["a"]) == [], "its worker was killed before it told its start"


@pytest.mark.parametrize(
    ("events", "named"),
    [
        ([*WHOLE[:2], *WHOLE[3:]], "2 events were written by stages, 1 stored; they differ from number 1 on"),
        ([*WHOLE[:3], *WHOLE[2:]], "2 events were written by stages, 3 stored; they differ from number 2 on"),
        ([WHOLE[0], WHOLE[2], WHOLE[1], *WHOLE[3:]], "2 events were written by stages, 2 stored; they differ from"),
        ([process("started", 2), *WHOLE], "process 1 began while 2 had not ended"),
        ([*WHOLE, process("ended", 1)], "process 1 ended twice"),
        ([process("started", 2), process("ended", 1), *WHOLE[1:3]], "process 1 ended while 2 was alive"),
        ([*WHOLE, process("started", 2)], "process 2 never ended"),
        ([*WHOLE, SUCCESS], "a succeeded 2 times"),
    ],
)
def test_what_is_missing_doubled_or_out_of_order_is_named(events: list[Event], named: str, layout: JobLayout) -> None:
    (wrong,) = violations(numbered(events), layout, ["a"])
    assert wrong.startswith(named)


def test_a_gap_in_the_numbers_is_named(layout: JobLayout) -> None:
    numbers = numbered(WHOLE)
    numbers[-1]["seq"] += 1
    (wrong,) = violations(numbers, layout, ["a"])
    assert wrong.startswith("events are not numbered 1 to 5")
