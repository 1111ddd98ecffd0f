"""A stage that is killed again and again: how long it is started anew, and what each process is told."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny import labels, plan_for

from s2d.cli.outcome import LOG_LINES
from s2d.errors import StageFailure
from s2d.events import NewEvent
from s2d.runner import child, pipeline
from s2d.runner.layout import JobLayout
from s2d.runner.local import _LocalHost
from s2d.runner.pipeline import MAX_CRASHES, Pipeline
from s2d.runner.processes import alive
from s2d.runner.task import StageTask, this_process

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


def run_stage(
    tmp_path: Path, further: bool, monkeypatch: pytest.MonkeyPatch, stage: str = STAGE, devices: int = 1
) -> list[NewEvent]:
    monkeypatch.setattr(pipeline.time, "sleep", lambda _: None)
    script = tmp_path / "stage.py"
    script.write_text(textwrap.dedent(stage).replace("FURTHER", str(further)))
    seen: list[NewEvent] = []
    upload, host = labels(tmp_path / "rows.jsonl"), _LocalHost(seen.append, lambda: False)
    plan = plan_for(upload)
    if devices > 1:
        plan = plan.model_copy(update={"hardware": plan.hardware.model_copy(update={"devices": devices})}).sealed()
    run = Pipeline(plan, upload, JobLayout(tmp_path / "job"), host, command=lambda _: [sys.executable, str(script)])
    run._take_over()
    run.layout.plan.write_text(plan.model_dump_json())
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


def memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel kills something at every look."""
    counts = itertools.count()
    monkeypatch.setattr(child, "_oom_kills", lambda: next(counts))


def test_a_kill_that_only_looks_like_the_kernels_fails_no_stage_that_gets_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A smaller micro-batch is not to be had, or was tried."""
    memory_is_short(monkeypatch)
    layout = JobLayout(tmp_path / "job")
    layout.stage("teacher_rl").mkdir(parents=True)
    layout.micro_batch("teacher_rl").write_text("1")
    seen = run_stage(tmp_path, True, monkeypatch)
    assert len([event for event in seen if "starting it again" in event.message]) == 6


def test_a_stage_that_the_kernel_kills_at_the_same_place_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_is_short(monkeypatch)
    with pytest.raises(StageFailure, match="signal 9: the host ran out of memory") as failed:
        run_stage(tmp_path, False, monkeypatch)
    assert failed.value.code == "out_of_memory"
    assert JobLayout(tmp_path / "job").micro_batch("teacher_rl").exists(), "half the micro-batch was tried"


def test_one_kill_that_may_be_the_kernels_does_not_make_a_crash_a_want_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looked like the kernel's the second of three times."""
    recent = iter([False, True, False])
    monkeypatch.setattr(child.OomKills, "within", lambda *_: next(recent))
    layout = JobLayout(tmp_path / "job")
    layout.stage("teacher_rl").mkdir(parents=True)
    layout.micro_batch("teacher_rl").write_text("1")
    with pytest.raises(StageFailure, match="signal 9") as failed:
        run_stage(tmp_path, False, monkeypatch)
    assert failed.value.code == "stage_failed"


def test_a_launch_of_which_the_kernel_killed_a_process_takes_half_the_micro_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_is_short(monkeypatch)
    stage = STAGE.replace("os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)")
    seen = run_stage(tmp_path, True, monkeypatch, stage, devices=2)
    assert next(event.message for event in seen if event.level == "warn").startswith("out of memory with")


def test_what_the_kernel_killed_long_ago_says_nothing_of_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    count, clock = 7, 0.0
    monkeypatch.setattr(child, "_oom_kills", lambda: count)
    monkeypatch.setattr(child.time, "monotonic", lambda: clock)
    kills = child.OomKills()
    assert not kills.within(30)
    count = 8
    assert kills.within(30)
    clock = 29.0
    assert kills.within(30)
    clock = 31.0
    assert not kills.within(30)


#: Starts a process in a session of its own, as torch's launcher does, freezes it, and is killed.
LAUNCHER = """
import os, signal, subprocess, sys, time
task, mark = sys.argv[-1], sys.argv[1]
code = "import sys, time; open(sys.argv[1], 'w').close(); time.sleep(600)"
rank = subprocess.Popen([sys.executable, "-c", code, mark, "s2d.stages", task], start_new_session=True)
while not os.path.exists(mark):
    time.sleep(0.01)
os.kill(rank.pid, signal.SIGSTOP)
print(rank.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_launcher_that_is_killed_leaves_no_process_behind(tmp_path: Path) -> None:
    task = StageTask(job_dir=tmp_path, stage="a", attempt=1, models={}, supervisor=this_process())
    ended = child.run(
        task,
        command=[sys.executable, "-c", LAUNCHER, str(tmp_path / "mark")],
        environment=dict(os.environ),
        on_start=lambda _: None,
        on_events=lambda _: None,
        wish=lambda: "run",
        grace_s=1,
    )
    assert ended.status == -signal.SIGKILL
    (rank,) = ended.log_tail
    with contextlib.suppress(psutil.NoSuchProcess):
        assert not alive(psutil.Process(int(rank)))


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


#: What a library in C does when it goes wrong.
SEGFAULTS = """
import os, signal, sys, threading
from s2d.stages.__main__ import program

def into_the_void(runtime, depth=50):
    if depth:
        into_the_void(runtime, depth - 1)
    os.kill(os.getpid(), signal.SIGSEGV)

threading.Thread(target=threading.Event().wait, daemon=True).start()
print("the last words")
program(sys.argv[1:], lambda stage: into_the_void)
"""


def test_a_library_that_crashes_leaves_its_stack_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StageFailure, match=f"signal {signal.SIGSEGV:d}") as failed:
        run_stage(tmp_path, False, monkeypatch, SEGFAULTS)
    told = failed.value.details["log"]
    assert "the last words" in told
    # What `s2d` shows of it: the call that crashed, of the thread that crashed.
    fatal, thread, innermost, *_ = told[-LOG_LINES:]
    assert fatal == "Fatal Python error: Segmentation fault"
    assert thread.startswith("Current thread ")
    assert innermost.endswith("in into_the_void")


def test_a_stage_tells_nobody_what_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL would, by this function."""
    quiet = ("HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY", "DO_NOT_TRACK", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    for name in quiet:
        monkeypatch.delenv(name, raising=False)
    tell = (
        "from huggingface_hub.utils import _telemetry as sent\n"
        "sent._start_telemetry_thread = lambda: None\n"
        "sent.send_telemetry('trl')\n"
        "print(sent._TELEMETRY_QUEUE.qsize())"
    )
    for environment, messages in ((dict(os.environ), "1"), (child.environment(1, None, 30), "0")):
        command = [sys.executable, "-c", tell]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert told.stdout.strip() == messages


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
