"""What only a real trainer shows: its checkpoints, its disk, its memory and its losses (rows 1, 9, 10, 11, 12)."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm_stages
from tiny import SHORT, labels, plan_for
from traces import metrics, rewards, weights

from s2d.data.ingest import ingest
from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan
from s2d.runner.pipeline import Outcome, Pipeline
from s2d.stages.checkpoints import sha256_file

pytestmark = pytest.mark.timeout(900)

#: Where each training stage is killed, twice: when a step was just saved, and after one that was not.
KILLED_AT = {
    "teacher_rl": [("checkpoint", 2), ("metrics", 5)], "warmup": [("metrics", 1), ("metrics", 3)],
    "opd": [("checkpoint", 2), ("metrics", 3)], "student_rl": [("metrics", 1), ("metrics", 3)],
    "direct_grpo": [("checkpoint", 2), ("metrics", 3)],
}  # fmt: skip
#: A stage that stops in its tracks, once at each place, still there to be killed however late we hear of it.
STAGE = """
import json, os, signal, sys
from pathlib import Path
from s2d.stages.runtime import StageRuntime

places, done = json.loads(sys.argv[1]), Path(sys.argv[2])
whole = StageRuntime.emit

def emit(self, kind, message="", *, level="info", step=None, **data):
    place = f"{self.task.stage} {kind} {step}"
    stops = [kind, step] in places.get(self.task.stage, []) and place not in done.read_text().splitlines()
    if stops:  # noted first: who reads the event may kill at once
        done.write_text(done.read_text() + place + "\\n")
    whole(self, kind, message, level=level, step=step, **data)
    if stops:
        os.kill(os.getpid(), signal.SIGSTOP)

StageRuntime.emit = emit
from s2d.stages.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
Places = Mapping[str, Sequence[tuple[str, int]]]


class Harm:
    """A host whose stages stop at certain places, and are killed there after `before` was called."""

    epoch = None

    def __init__(self, places: Places, folder: Path, before: Callable[[], None] = lambda: None) -> None:
        self.kills: list[tuple[str, str, int]] = []
        self.seen: list[NewEvent] = []
        self._places, self._done, self._before = places, folder / "stopped", before
        self._done.touch()

    def run(self, plan: Plan, upload: Path, out: Path) -> Outcome:
        out.mkdir()
        with upload.open("rb") as stream:
            ingest(stream, out / "rows.jsonl")
        command = [sys.executable, "-c", STAGE, json.dumps(self._places), str(self._done)]
        return Pipeline(plan, out / "rows.jsonl", JobLayout(out), self, command=lambda _: command).run()

    def events(self, events: Sequence[NewEvent]) -> None:
        for event in events:
            self.seen.append(event)
            place = (str(event.stage), event.type, event.step or 0)
            if place[1:] in self._places.get(place[0], []) and place not in self.kills:
                self.kills.append(place)
                self._before()
                os.kill(trainer().pid, signal.SIGKILL)

    def missed(self, layout: Any, stages: Any) -> Any:
        return ()

    def wish(self) -> Any:
        return "run"

    def spend(self, account: Any, role: str, labels: Any) -> None: ...


@pytest.fixture(scope="module")
def upload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return labels(tmp_path_factory.mktemp("labels") / "labels.jsonl")


@pytest.fixture(scope="module")
def plan(upload: Path) -> Plan:
    return plan_for(upload)


@pytest.fixture(scope="module")
def whole(plan: Plan, upload: Path, tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """One undisturbed run of every stage, made by whichever of pytest's processes asks first."""
    own = tmp_path_factory.getbasetemp()
    with (own if worker_id == "master" else own.parent).joinpath("whole").open("a+") as made:
        fcntl.flock(made, fcntl.LOCK_EX)
        made.seek(0)
        if path := made.read():
            return Path(path)
        out = tmp_path_factory.mktemp("runs") / "whole"
        assert run_plan(plan, upload, out, lambda _: None, command=warm_stages.command).state == "succeeded"
        made.write(str(out))
        return out


def trainer() -> psutil.Process:
    (child,) = (one for one in psutil.Process().children() if "s2d.stages" in " ".join(one.cmdline()))
    return child


@pytest.mark.fault(1)
def test_killed_twice_in_every_stage_it_ends_with_the_same_weights(
    whole: Path, plan: Plan, upload: Path, tmp_path: Path
) -> None:
    """Batches, losses, rewards, labels spent and weights are those of a run that nobody has disturbed."""
    harm = Harm(KILLED_AT, tmp_path)
    outcome = harm.run(plan, upload, tmp_path / "harmed")
    assert outcome.state == "succeeded", outcome.error
    assert harm.kills == [(stage, *place) for stage, two in KILLED_AT.items() for place in two]
    assert weights(tmp_path / "harmed") == weights(whole)
    assert metrics(tmp_path / "harmed") == metrics(whole)
    assert (tmp_path / "harmed" / "ledger.jsonl").read_text() == (whole / "ledger.jsonl").read_text()
    assert rewards(tmp_path / "harmed") == rewards(whole)


@pytest.mark.fault(10)
def test_a_corrupt_checkpoint_is_set_aside_and_the_one_before_is_used(
    whole: Path, plan: Plan, upload: Path, tmp_path: Path
) -> None:
    """Between two steps: the newest checkpoint loses a bit, and the trainer its life."""
    out = tmp_path / "harmed"
    checkpoints = JobLayout(out).stage("teacher_rl") / "checkpoints"
    places = {"teacher_rl": [("metrics", 5)]}
    harm = Harm(places, tmp_path, lambda: flip_a_bit(checkpoints / "checkpoint-4" / "model.safetensors"))
    assert harm.run(teacher_only(plan), upload, out).state == "succeeded"
    assert [one.message for one in harm.seen if one.message.startswith("resuming")] == ["resuming from checkpoint-2"]
    assert [path.name for path in checkpoints.glob("quarantine-*")] == ["quarantine-0-checkpoint-4"]
    assert sha256_file(out / "models" / "rl_teacher" / "model.safetensors") == weights(whole)["rl_teacher"]


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def teacher_only(plan: Plan) -> Plan:
    """What ends after stage 1 is enough here."""
    return plan.model_copy(update={"stages": plan.stages[:1]}).sealed()


@contextmanager
def small_disk(folder: Path, *options: str) -> Iterator[None]:
    """A file system of its own in the folder; `mount` needs root."""
    folder.mkdir(parents=True)
    if os.geteuid() != 0:
        if os.environ.get("CI") == "true":
            pytest.fail("a full disk needs a file system of its own, and mounting one needs root")
        pytest.skip("mounting a small file system needs root")
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.fault(9)
@pytest.mark.parametrize(
    ("options", "told"),
    [
        # Room for one checkpoint and not for two: it is seen before anything is written.
        (("size=20m",), "needs about"),
        # Room in bytes, and none for so many files: writing itself fails, half-way.
        (("size=64m", "nr_inodes=20"), "No space left"),
    ],
)
def test_a_full_disk_keeps_the_checkpoint_before_and_the_job_goes_on_when_there_is_room(
    whole: Path, plan: Plan, upload: Path, tmp_path: Path, options: tuple[str, ...], told: str
) -> None:
    out = tmp_path / "full"
    checkpoints = JobLayout(out).stage("teacher_rl") / "checkpoints"
    kept = tmp_path / "kept"
    with small_disk(checkpoints, *options):
        outcome = run_plan(teacher_only(plan), upload, out, lambda _: None, command=warm_stages.command)
        assert outcome.state == "failed"
        assert outcome.error is not None
        assert (outcome.error["code"], outcome.error["stage"]) == ("disk_full", "teacher_rl")
        assert told in outcome.error["message"], outcome.error
        assert "resume" in outcome.error["advice"]
        left = sorted(path.name for path in checkpoints.glob("*checkpoint*"))
        assert left == ["checkpoint-2"], "the partial one is gone, the one before is there"
        assert (checkpoints / "checkpoint-2" / "manifest.json").exists()
        shutil.copytree(checkpoints, kept)
    shutil.copytree(kept, checkpoints, dirs_exist_ok=True)
    events: list[NewEvent] = []
    assert run_plan(teacher_only(plan), upload, out, events.append, command=warm_stages.command).state == "succeeded"
    assert [one.message for one in events if one.message.startswith("resuming")] == ["resuming from checkpoint-2"]
    assert sha256_file(out / "models" / "rl_teacher" / "model.safetensors") == weights(whole)["rl_teacher"]


class Filler(Harm):
    """A host that fills the disk with a file when an event comes."""

    def __init__(self, folder: Path, at: tuple[str, int]) -> None:
        self.file = folder / "filler"
        self.seen: list[NewEvent] = []
        self._at = at

    def events(self, events: Sequence[NewEvent]) -> None:
        self.seen += events
        if self._at in [(event.type, event.step) for event in events] and not self.file.exists():
            with suppress(OSError), self.file.open("wb", buffering=0) as file:
                while file.write(bytes(4096)):
                    pass


@pytest.mark.fault(9)
def test_a_disk_that_is_too_full_for_the_reason_is_named_all_the_same(upload: Path, tmp_path: Path) -> None:
    """Events, the log and the reason of the failure lie on the disk that is full. A drill: no training is needed."""
    stages = {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "steps": 600, "save_every": 200}}
    plan, out = teacher_only(plan_for(upload, stages=stages)), tmp_path / "full"
    folder = JobLayout(out).stage("teacher_rl")
    with small_disk(out, "size=4m"):
        host = Filler(out, ("checkpoint", 200))
        with upload.open("rb") as stream:
            ingest(stream, out / "rows.jsonl")
        drill = [sys.executable, "-m", "s2d.stages.drill"]
        pipeline = Pipeline(plan, out / "rows.jsonl", JobLayout(out), host, command=lambda _: drill)
        outcome = pipeline.run()
        assert outcome.error is not None
        assert (outcome.error["code"], outcome.error["stage"]) == ("disk_full", "teacher_rl"), outcome.error
        assert "status 74" in outcome.error["message"]
        assert (host.file.exists(), (folder / "failure.json").exists()) == (True, False)
        steps = [event.step or 0 for event in host.seen if event.type == "metrics"]
        assert 200 <= max(steps) < 400, "the next event, and no checkpoint, was what found no room"
        host.file.unlink()
        assert pipeline.run().state == "succeeded"
    assert [one.message for one in host.seen if one.message.startswith("resuming")] == ["resuming from checkpoint-200"]
