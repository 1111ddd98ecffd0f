"""Where reading of a job's events goes on: after what was stored last, whatever files there are."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2d.events import Origin
from s2d.runner.events import unread
from s2d.runner.layout import JobLayout

STAGES = ("b", "a")


def files(root: Path, *attempts: tuple[str, int]) -> JobLayout:
    """Each with one event that names it."""
    layout = JobLayout(root)
    for stage, attempt in attempts:
        layout.stage(stage).mkdir(parents=True, exist_ok=True)
        line = f'{{"type": "message", "message": "{stage}{attempt}"}}\n'
        (layout.stage(stage) / f"events-{attempt:03d}.jsonl").write_text(line)
    return layout


def told(layout: JobLayout, read: Origin | None) -> list[str]:
    return [event.message for events in unread(layout, STAGES, read) for event in events]


@pytest.mark.parametrize(
    ("read", "expected"),
    [
        (None, ["b1", "b2", "a1"]),
        (Origin(file="stages/b/events-001.jsonl", offset=0), ["b1", "b2", "a1"]),
        (Origin(file="stages/b/events-002.jsonl", offset=10**6), ["a1"]),
        (Origin(file="stages/a/events-001.jsonl", offset=10**6), []),
    ],
)
def test_it_goes_on_in_the_order_of_the_plan(tmp_path: Path, read: Origin | None, expected: list[str]) -> None:
    assert told(files(tmp_path, ("a", 1), ("b", 1), ("b", 2)), read) == expected


def test_a_file_that_went_with_the_power_brings_nothing_back(tmp_path: Path) -> None:
    layout = files(tmp_path, ("b", 1), ("b", 3), ("a", 1))
    assert told(layout, Origin(file="stages/b/events-002.jsonl", offset=10)) == ["b3", "a1"]


def test_the_thousandth_attempt_comes_after_the_one_before(tmp_path: Path) -> None:
    layout = files(tmp_path, ("b", 998), ("b", 999), ("b", 1000), ("b", 1001))
    assert told(layout, Origin(file="stages/b/events-999.jsonl", offset=10**6)) == ["b1000", "b1001"]
    assert told(layout, None) == ["b998", "b999", "b1000", "b1001"]
