"""Training stages in two processes under a launcher, one of which is killed: the job goes on and leaves nobody."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import psutil
import pytest
import sharded_on_cpu
import torch
from safetensors.torch import load_file
from tiny import SHORT, labels, plan_for

from s2d.data.ingest import ingest
from s2d.events import NewEvent
from s2d.plan.document import Plan, Training
from s2d.plan.graph import Account
from s2d.runner.child import Wish
from s2d.runner.layout import JobLayout
from s2d.runner.pipeline import Pipeline
from s2d.runner.processes import stage_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STAGES = {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"}
MODELS = ("rl_teacher", "warmup_student", "opd_student", "rl_student")


def two_devices(plan: Plan) -> Plan:
    """The same optimizer steps, each process with half of the sequences. The planner itself plans CPUs as one."""
    stages = tuple(
        stage.model_copy(update={"per_device_batch_size": stage.per_device_batch_size // 2})
        if isinstance(stage, Training)
        else stage
        for stage in plan.stages
    )
    hardware = plan.hardware.model_copy(update={"devices": 2})
    return plan.model_copy(update={"stages": stages, "hardware": hardware}).sealed()


def up_to(last: str, plan: Plan) -> Plan:
    """The plan without the stages that come after this one."""
    return plan.model_copy(update={"stages": plan.stages[: list(plan.ids()).index(last) + 1]}).sealed()


def launch_on_cpu(devices: int, program: Sequence[str] = ("--module", "s2d.stages")) -> list[str]:
    """What `accelerate launch --multi_gpu` runs, without its check that there are GPUs."""
    if devices == 1:
        return [sys.executable, "-m", "s2d.stages"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(devices)]
    return [*launch, "--master_addr", "127.0.0.1", "--master_port", str(port), *program]


def launch_sharded(devices: int) -> list[str]:
    return launch_on_cpu(devices, [str(Path(sharded_on_cpu.__file__))])


def shared(plan: Plan) -> Plan:
    """The same with FSDP in every training stage. The planner itself does that with GPUs."""
    stages = tuple(
        stage.model_copy(update={"sharded": True}) if isinstance(stage, Training) else stage for stage in plan.stages
    )
    return plan.model_copy(update={"stages": stages}).sealed()


class Host:
    epoch: int | None = None

    def __init__(self, *, kills: Literal["rank", "launcher"] | None, after: int = 0) -> None:
        self.seen: list[NewEvent] = []
        self.killed: int | None = None
        self._kills, self._after = kills, after

    def missed(self, layout: JobLayout, stages: Iterable[str]) -> Iterable[list[NewEvent]]:
        return ()

    def events(self, events: list[NewEvent]) -> None:
        self.seen += events
        steps = [event for event in events if event.type == "metrics" and event.stage == "teacher_rl"]
        if self._kills is not None and self.killed is None and any(event.step == self._after for event in steps):
            (launcher,) = (p for p in psutil.Process().children() if "torch.distributed.run" in p.cmdline())
            rank = launcher.children()[-1]
            if self._kills == "launcher":
                # So that it cannot end itself when it finds its launcher gone.
                rank.suspend()
            killed = launcher if self._kills == "launcher" else rank
            self.killed = killed.pid
            killed.kill()

    def wish(self) -> Wish:
        return "run"

    def spend(self, account: Account, role: str, labels: Sequence[str]) -> None: ...


@pytest.mark.parametrize("kills", ["rank", "launcher"])
def test_a_killed_rank_is_a_crash_that_is_resumed_from(kills: Literal["rank", "launcher"], tmp_path: Path) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    # Killed after the seventh step, five before the next that is saved. One stage shows it.
    stages = {**STAGES, "teacher_rl": {**STAGES["teacher_rl"], "steps": 14, "save_every": 6}}
    plan = up_to("teacher_rl", two_devices(plan_for(upload, controls=[], stages=stages)))
    rows, layout, host = tmp_path / "rows.jsonl", JobLayout(tmp_path / "job"), Host(kills=kills, after=7)
    with upload.open("rb") as stream:
        ingest(stream, rows)
    outcome = Pipeline(plan, rows, layout, host, command=launch_on_cpu).run()
    assert outcome.state == "succeeded", outcome.error
    assert host.killed is not None
    assert [event.message for event in host.seen if event.message.startswith("resuming")] == [
        "resuming from checkpoint-6"
    ]
    folder = layout.stage("teacher_rl") / "checkpoints" / "checkpoint-14"
    files = json.loads((folder / "manifest.json").read_text())["files"]
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= set(files), "the manifest waits for every process"
    assert not stage_processes(lambda task: layout.root in task.parents)


def test_devices_that_share_a_models_states_come_to_the_same_weights(tmp_path: Path) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    # With a reference model too, and with gradients that are accumulated.
    stages = {**STAGES, "student_rl": {**STAGES["student_rl"], "beta": 0.02, "per_device_batch_size": 8}}
    plain = up_to("student_rl", two_devices(plan_for(upload, controls=[], stages=stages)))
    rows = tmp_path / "rows.jsonl"
    with upload.open("rb") as stream:
        ingest(stream, rows)
    found = {}
    for name, plan, launch in (("plain", plain, launch_on_cpu), ("shared", shared(plain), launch_sharded)):
        layout, host = JobLayout(tmp_path / name), Host(kills="rank" if name == "shared" else None, after=3)
        outcome = Pipeline(plan, rows, layout, host, command=launch).run()
        assert outcome.state == "succeeded", outcome.error
        assert (host.killed is not None) == (name == "shared")
        found[name] = {role: load_file(layout.model(role) / "model.safetensors") for role in MODELS}
        opd = [event.data["metrics"] for event in host.seen if event.type == "metrics" and event.stage == "opd"]
        found[name]["metrics"] = {key: [step[key] for step in opd] for key in ("loss", "forward_kl", "reverse_kl")}
    weights = JobLayout(tmp_path / "shared").stage("opd") / "checkpoints" / "checkpoint-4" / "pytorch_model_fsdp_0"
    assert {"__0_0.distcp", "__1_0.distcp"} <= {file.name for file in weights.iterdir()}, "each keeps its own share"
    for role in MODELS:
        assert found["plain"][role].keys() == found["shared"][role].keys()
        for name, expected in found["plain"][role].items():
            # Sums in another order; measured are 7e-6.
            torch.testing.assert_close(found["shared"][role][name], expected, rtol=0, atol=3e-5, msg=f"{role}: {name}")
    assert found["shared"]["metrics"] == {
        name: pytest.approx(values, abs=1e-4) for name, values in found["plain"]["metrics"].items()
    }
