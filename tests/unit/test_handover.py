"""A job changes hands: one after the other, and beside a janitor."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny import labels, plan_for

from s2d.atomic import write_atomic
from s2d.events import NewEvent
from s2d.runner import exclusive, handover
from s2d.runner.exclusive import Holder, StillHeld, Superseded
from s2d.runner.handover import hand_over
from s2d.runner.layout import JobLayout
from s2d.runner.local import _LocalHost
from s2d.runner.pipeline import Pipeline
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
            with pytest.raises(StillHeld, match="has not finished"):
                hand_over(layout, 4, (), lambda _: None, lambda: None)
    assert hand_over(layout, 4, (), lambda _: None, lambda: None) == 4


def test_what_lives_on_another_host_sends_the_job_back_and_fails_it_not(
    layout: JobLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen there, or without power while a file server still keeps its locks."""
    monkeypatch.setattr(exclusive, "PATIENCE_S", 0.1)
    # Nothing can be done about it from here, so it is not waited for.
    monkeypatch.setattr(exclusive, "LAST_PATIENCE_S", math.inf)
    elsewhere = Holder(stage="a", attempt=1, host="elsewhere", process=ProcessId(pid=1, started=0.0))
    upload, seen = labels(tmp_path / "rows.jsonl"), list[NewEvent]()
    with exclusive.taken_over(layout, 3, lambda: None):
        write_atomic(layout.holder, elsewhere.model_dump_json())
        assert not exclusive.free(layout)
        outcome = Pipeline(plan_for(upload), upload, layout, _LocalHost(seen.append, lambda: False)).run()
    assert outcome.state == "interrupted"
    assert outcome.wait_s > 0
    (told,) = seen
    assert told.level == "warn"
    assert "process 1 of elsewhere still has the job's lock" in told.message
    assert exclusive.free(layout)


#: Holds the job's lock, as a process of a launch does.
HOLDS = """
import fcntl, sys, time
with open(sys.argv[1], "a") as lock:
    fcntl.flock(lock, fcntl.LOCK_SH)
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_frozen_process_whose_launcher_is_gone_is_ended(layout: JobLayout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "PATIENCE_S", 0.1)
    gone = Holder(stage="a", attempt=1, host=exclusive.this_host(), process=ProcessId(pid=2**22, started=0.0))
    write_atomic(layout.holder, gone.model_dump_json())
    task = layout.stage("a") / "task-3-001.json"
    command = [sys.executable, "-c", HOLDS, str(layout.trainer_lock), "s2d.stages", str(task)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as rank:
        assert rank.stdout is not None
        rank.stdout.readline()
        rank.send_signal(signal.SIGSTOP)
        told: list[str] = []
        hand_over(layout, 4, (), lambda events: told.extend(one.message for one in events), lambda: None)
        assert rank.wait(30) == -signal.SIGKILL
    assert told == [f"process {2**22} ended"]


def test_a_worker_that_wakes_late_writes_nothing_over_the_new_claims_process(layout: JobLayout) -> None:
    told: list[NewEvent] = []
    hand_over(layout, 4, (), told.extend, lambda: None)
    handover.tell_start(layout, told.extend, "a", 2, os.getpid(), 4)
    before = layout.holder.read_text()
    with pytest.raises(Superseded):
        handover.tell_start(layout, told.extend, "a", 1, os.getppid(), 3)
    with pytest.raises(Superseded):
        # The database took what it told before it slept.
        handover.tell_end(layout, lambda _: None, epoch=3)
    assert layout.holder.read_text() == before
    handover.tell_end(layout, told.extend, 0, epoch=4)
    assert [event.data["state"] for event in told] == ["started", "ended"]
    assert not layout.holder.exists()


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
