"""A stage that is killed again and again: how long it is started anew, and what each process is told."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from tiny import labels, plan_for

from s2d.errors import StageFailure
from s2d.events import NewEvent
from s2d.runner import child, pipeline
from s2d.runner.layout import JobLayout
from s2d.runner.local import _LocalHost
from s2d.runner.pipeline import MAX_CRASHES, Pipeline

#: Gets one step further than the process before it, or not, and is killed; the seventh ends well.
STAGE = """
import json, os, signal, sys
task = json.loads(open(sys.argv[1]).read())
folder = os.path.dirname(sys.argv[1])
n = task["attempt"]
with open(f"{folder}/events-{n:03d}.jsonl", "w") as file:
    step = n if FURTHER else 1
    event = {"type": "checkpoint", "stage": task["stage"], "step": step, "message": f"checkpoint-{step} written"}
    file.write(json.dumps(event) + "\\n")
if n < 7:
    os.kill(os.getpid(), signal.SIGKILL)
open(f"{folder}/result.json", "w").write("{}")
"""


def run_stage(tmp_path: Path, further: bool, monkeypatch: pytest.MonkeyPatch) -> list[NewEvent]:
    monkeypatch.setattr(pipeline.time, "sleep", lambda _: None)
    script = tmp_path / "stage.py"
    script.write_text(textwrap.dedent(STAGE).replace("FURTHER", str(further)))
    seen: list[NewEvent] = []
    upload, host = labels(tmp_path / "rows.jsonl"), _LocalHost(seen.append, lambda: False)
    plan = plan_for(upload)
    run = Pipeline(plan, upload, JobLayout(tmp_path / "job"), host, command=lambda _: [sys.executable, str(script)])
    run._epoch = 1
    run._run_child("teacher_rl")
    return seen


def test_a_stage_that_gets_further_each_time_goes_on_however_often_it_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = run_stage(tmp_path, True, monkeypatch)
    again = [event for event in seen if "starting it again" in event.message]
    assert len(again) == 6 > MAX_CRASHES


def test_a_stage_that_is_killed_at_the_same_place_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match="signal 9"):
        run_stage(tmp_path, False, monkeypatch)
    folder = JobLayout(tmp_path / "job").stage("teacher_rl")
    tasks = sorted(path.name for path in folder.glob("task-*.json"))
    assert tasks == [f"task-1-{n:03d}.json" for n in range(1, MAX_CRASHES + 1)], "each process has its own"
    assert [json.loads((folder / name).read_text())["attempt"] for name in tasks] == [1, 2, 3]


def test_a_stage_that_ends_without_a_word_on_a_full_disk_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a launcher does, which has no exit status for it."""
    usage = shutil.disk_usage(tmp_path)._replace(free=4096)
    monkeypatch.setattr(pipeline.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StageFailure, match="no room") as failed:
        run_stage(tmp_path, True, monkeypatch)
    assert failed.value.code == "disk_full"


def test_a_number_of_an_attempt_is_not_given_twice_though_its_events_are_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = JobLayout(tmp_path / "job").stage("teacher_rl")
    folder.mkdir(parents=True)
    (folder / "task-1-004.json").touch()
    (folder / "events-003.jsonl").touch()
    run_stage(tmp_path, True, monkeypatch)
    assert sorted(path.name for path in folder.glob("events-*")) == [
        f"events-{number:03d}.jsonl" for number in (3, 5, 6, 7)
    ]


def test_a_launcher_waits_longer_for_its_processes_than_the_runner() -> None:
    assert int(child.environment(1, None, 300.0)["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) > 300


def test_a_report_is_written_though_the_whole_group_is_told_to_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `s2d up` and systemd stop a worker: SIGTERM to its group, which the worker itself lives through."""
    upload, host = labels(tmp_path / "rows.jsonl"), _LocalHost(lambda _: None, lambda: False)
    run = Pipeline(plan_for(upload), upload, JobLayout(tmp_path / "job"), host)
    given: dict[str, Any] = {}

    class Done:
        returncode, stderr = 0, ""

    def record(_command: list[str], **options: Any) -> Done:
        given.update(options)
        return Done()

    monkeypatch.setattr(pipeline.subprocess, "run", record)
    assert run._report() == run.layout.report / "report.json"
    assert given["start_new_session"]
