"""A second chance, once: out of memory, a stage takes half the micro-batch (row 12); a loss that is no number is rolled
back (row 11)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm_stages
from tiny import SHORT, labels, plan_for

from s2d.data.ingest import ingest
from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan
from s2d.runner.pipeline import Outcome, Pipeline

FITS = 16
#: Runs a stage as ever, but for a fault before a step.
STAGE = """
import sys
from pathlib import Path
import torch
from trl import GRPOTrainer

whole = GRPOTrainer._compute_loss

def loss(self, *arguments, **named):
    FAULT
    return whole(self, *arguments, **named)

GRPOTrainer._compute_loss = loss
from s2d.stages.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
MEMORY = """if self.state.global_step >= 2 and self.args.per_device_train_batch_size > {limit}:
        {fault}"""
#: What a GPU says, for want of one; and what this host really says to more memory than there is.
NO_MEMORY = {
    "cuda": 'raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")',
    "host": "torch.empty(2**55, dtype=torch.uint8)",
}
#: The loss is spoilt in the fourth step, the first `times` times that it is come to.
NAN = """if self.state.global_step == 3 and len(list(Path({folder!r}).glob("spoilt-*"))) < {times}:
        Path({folder!r}, f"spoilt-{{len(list(Path({folder!r}).glob('spoilt-*')))}}").touch()
        return whole(self, *arguments, **named) * float("nan")"""


class Recorder:
    """A host that lets everything happen."""

    epoch = None

    def __init__(self) -> None:
        self.seen: list[NewEvent] = []

    def events(self, events: list[NewEvent]) -> None:
        self.seen.extend(events)

    def missed(self, layout: Any, stages: Any) -> Any:
        return ()

    def wish(self) -> Any:
        return "run"

    def spend(self, account: Any, role: str, labels: Any) -> None: ...


def teacher_only(plan: Plan) -> Plan:
    """What ends after stage 1 is enough here."""
    return plan.model_copy(update={"stages": plan.stages[:1]}).sealed()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Path]:
    upload = labels(tmp_path_factory.mktemp("labels") / "rows.jsonl")
    stages = {**SHORT["stages"], "teacher_rl": {**SHORT["stages"]["teacher_rl"], "per_device_batch_size": 32}}
    stages.pop("direct_grpo")
    return teacher_only(plan_for(upload, controls=[], stages=stages)), upload


@pytest.fixture(scope="module")
def undisturbed(plan: tuple[Plan, Path], tmp_path_factory: pytest.TempPathFactory) -> list[NewEvent]:
    seen: list[NewEvent] = []
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert run_plan(*plan, out, seen.append, command=warm_stages.command).state == "succeeded"
    return seen


def run_with(fault: str, plan: Plan, upload: Path, out: Path) -> tuple[Outcome, list[NewEvent]]:
    out.mkdir()
    script, rows = out / "stage.py", out / "rows.jsonl"
    script.write_text(STAGE.replace("FAULT", fault))
    with upload.open("rb") as stream:
        ingest(stream, rows)
    host = Recorder()
    outcome = Pipeline(plan, rows, JobLayout(out), host, command=warm_stages.running(script)).run()
    return outcome, host.seen


def rewards(events: list[NewEvent]) -> list[tuple[int | None, float]]:
    return [(one.step, one.data["metrics"]["reward_mean"]) for one in events if one.type == "metrics"]


@pytest.mark.fault(12)
@pytest.mark.parametrize("fault", NO_MEMORY)
def test_half_the_micro_batch_makes_the_same_steps(
    plan: tuple[Plan, Path], undisturbed: list[NewEvent], tmp_path: Path, fault: str
) -> None:
    memory = MEMORY.format(limit=FITS, fault=NO_MEMORY[fault])
    outcome, seen = run_with(memory, *plan, tmp_path / "short")
    assert outcome.state == "succeeded", outcome.error
    warned = [event.message for event in seen if event.level == "warn"]
    assert warned == ["out of memory with 32 sequences in a forward pass; going on with 16, which makes the same steps"]
    made = rewards(seen)
    assert [step for step, _ in made] == [1, 2, 3, 4, 5, 6]
    # Step 3 draws from the same weights and random state as in the run that had the memory.
    assert made[:3] == rewards(undisturbed)[:3]


@pytest.mark.fault(12)
def test_memory_is_tried_once(plan: tuple[Plan, Path], tmp_path: Path) -> None:
    outcome, _ = run_with(MEMORY.format(limit=FITS // 2, fault=NO_MEMORY["host"]), *plan, tmp_path / "short")
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["stage"]) == ("out_of_memory", "teacher_rl")
    assert "per_device_batch_size" in outcome.error["advice"]


@pytest.mark.fault(12)
def test_a_trainer_that_the_kernel_killed_for_its_memory_is_taken_for_that(
    plan: tuple[Plan, Path], tmp_path: Path
) -> None:
    """A control group that is full: the kernel's own out-of-memory killer, as on a host without swap."""
    seen: list[NewEvent] = []
    with memory_group() as group:

        def confine(event: NewEvent) -> None:
            seen.append(event)
            if (event.type, event.step) == ("metrics", 3) and not confined:
                (trainer,) = (one for one in psutil.Process().children() if "s2d.stages" in " ".join(one.cmdline()))
                confined.append(trainer.pid)
                group.confine(trainer.pid)

        confined: list[int] = []
        outcome = run_plan(*plan, tmp_path / "run", confine)
    assert outcome.state == "succeeded", outcome.error
    warned = [event.message for event in seen if event.level == "warn"]
    assert warned == ["out of memory with 32 sequences in a forward pass; going on with 16, which makes the same steps"]
    assert [step for step, _ in rewards(seen)][-1] == 6


class MemoryGroup:
    """A control group of its own, version 1 or 2."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._limit = folder / ("memory.max" if (folder / "memory.max").exists() else "memory.limit_in_bytes")

    def confine(self, pid: int) -> None:
        """From now on the process may have a few MiB more: less than it needs to go on."""
        (self._folder / "cgroup.procs").write_text(str(pid))
        self._limit.write_text(str(4 * 2**20))


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    root = next((one for one in map(Path, ("/sys/fs/cgroup/memory", "/sys/fs/cgroup")) if one.is_dir()), None)
    folder = root / f"s2d-test-{os.getpid()}" if root else None
    try:
        assert folder is not None
        folder.mkdir()
    except (OSError, AssertionError) as err:
        reason = f"a control group for memory cannot be made here: {err}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield MemoryGroup(folder)
    finally:
        folder.rmdir()


@pytest.mark.fault(11)
def test_a_loss_that_is_no_number_is_rolled_back_once(
    plan: tuple[Plan, Path], undisturbed: list[NewEvent], tmp_path: Path
) -> None:
    outcome, seen = run_with(NAN.format(folder=str(tmp_path), times=1), *plan, tmp_path / "spoilt")
    assert outcome.state == "succeeded", outcome.error
    (warned,) = (event for event in seen if event.level == "warn")
    assert warned.message.endswith("Going back to the last checkpoint, once.")
    assert dict(rewards(seen)) == dict(rewards(undisturbed)), "as if nothing had happened"


@pytest.mark.fault(11)
def test_it_fails_the_second_time_and_names_the_step(plan: tuple[Plan, Path], tmp_path: Path) -> None:
    outcome, _ = run_with(NAN.format(folder=str(tmp_path), times=2), *plan, tmp_path / "spoilt")
    assert outcome.state == "failed"
    assert outcome.error is not None
    assert (outcome.error["code"], outcome.error["step"]) == ("nan_loss", 4)
    assert not (tmp_path / "spoilt" / "models").exists(), "nothing is promoted"
