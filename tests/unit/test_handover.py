"""A job changes hands: one after the other, and beside a janitor."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from s2d.atomic import write_atomic
from s2d.errors import StageFailure
from s2d.events import NewEvent
from s2d.runner import exclusive, handover
from s2d.runner.exclusive import Holder, Superseded
from s2d.runner.handover import hand_over
from s2d.runner.layout import JobLayout
from s2d.runner.task import ProcessId


@pytest.fixture
def layout(tmp_path: Path) -> JobLayout:
    (tmp_path / "stages" / "a").mkdir(parents=True)
    return JobLayout(tmp_path)


def test_two_that_find_a_lost_job_tell_its_process_end_once(layout: JobLayout) -> None:
    gone = Holder(stage="a", attempt=1, host="elsewhere", process=ProcessId(pid=1, started=0.0))
    write_atomic(layout.holder, gone.model_dump_json())
    told: list[str] = []
    telling, go_on = threading.Event(), threading.Event()

    def slowly(events: list[NewEvent]) -> None:
        told.extend(event.message for event in events)
        telling.set()
        assert go_on.wait(30)

    first = threading.Thread(target=hand_over, args=(layout, 3, (), slowly, lambda: None))
    first.start()
    assert telling.wait(30)
    waited = threading.Event()

    def later(events: list[NewEvent]) -> None:
        told.extend(event.message for event in events)

    second = threading.Thread(target=hand_over, args=(layout, 3, (), later, waited.set))
    second.start()
    assert waited.wait(30), "the second waits for the first"
    go_on.set()
    first.join()
    second.join()
    assert told == ["process 1 ended"]
    with pytest.raises(Superseded):
        hand_over(layout, 2, (), later, lambda: None)


def test_a_worker_that_sleeps_while_it_takes_over_fails_no_job(
    layout: JobLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exclusive, "PATIENCE_S", 0.1)
    monkeypatch.setattr(exclusive, "LAST_PATIENCE_S", 0.2)
    gone = Holder(stage="a", attempt=1, host=exclusive.this_host(), process=ProcessId(pid=2**22, started=0.0))
    with exclusive.taken_over(layout, 3, lambda: None):
        for last in (None, gone):
            if last is not None:
                write_atomic(layout.holder, last.model_dump_json())
            with pytest.raises(Superseded, match="has not finished"):
                hand_over(layout, 4, (), lambda _: None, lambda: None)
        write_atomic(layout.holder, gone.model_copy(update={"host": "elsewhere"}).model_dump_json())
        with pytest.raises(StageFailure, match="still alive"):
            hand_over(layout, 4, (), lambda _: None, lambda: None)
    assert hand_over(layout, 4, (), lambda _: None, lambda: None) == 4


def test_half_written_files_go_and_what_a_janitor_deletes_is_left_to_it(
    layout: JobLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    half, kept = layout.root / "stages" / "a" / ".result.json.7.tmp", layout.root / "stages" / "a" / "result.json"
    trash = layout.root / ".trash-1-checkpoint" / ".state.tmp"
    trash.parent.mkdir()
    aside = layout.root / ".trash-2-.plan.json.7.tmp"
    for path in (half, kept, trash, aside):
        path.touch()
    walk = os.walk

    def vanishing(root: Path) -> object:
        # Somebody else is quicker between the look and the deletion.
        yield str(layout.root / "gone"), [], [".x.tmp"]
        yield from walk(root)

    monkeypatch.setattr(handover.os, "walk", vanishing)
    hand_over(layout, 1, (), lambda _: None, lambda: None)
    assert not half.exists()
    assert kept.exists()
    assert trash.exists()
    assert aside.exists()


def test_a_folder_that_vanishes_while_it_is_searched_is_no_trouble(layout: JobLayout) -> None:
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            folder = layout.root / "stages" / f"t{number}"
            folder.mkdir()
            (folder / "f").touch()
            (folder / "f").unlink()
            folder.rmdir()
            number += 1

    janitor = threading.Thread(target=churn)
    janitor.start()
    try:
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            hand_over(layout, 1, (), lambda _: None, lambda: None)
    finally:
        stop.set()
        janitor.join()
