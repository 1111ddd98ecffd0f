"""One process with eight rollouts and two with four each take the same step, and it is the formula's.

This file is also what the launcher starts: each process makes the stages' trainers and rank 0 leaves what it found.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).resolve().parents[1]
TIMEOUT_S = 240


def launch(processes: int, out: Path) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(port)]
    path = os.pathsep.join([str(TESTS.parent), str(TESTS), str(TESTS / "unit")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    # Ended by the launcher's own time limit at the latest: on SIGTERM it ends its processes.
    done = subprocess.run(
        ["timeout", str(TIMEOUT_S), *launcher, *address, __file__, str(out)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = torch.load(out)
    return found


@pytest.mark.slow
def test_two_processes_take_the_step_of_one(tmp_path: Path) -> None:
    one, two = (launch(n, tmp_path / f"{n}.pt") for n in (1, 2))
    assert one.keys() == two.keys()
    for name, (found, loss, gradients) in two.items():
        if name.startswith("mutant"):
            assert found != [], name
            continue
        assert found == one[name][0] == [], name
        assert loss == pytest.approx(one[name][1], rel=1e-5, abs=1e-7), name
        for parameter, gradient in gradients.items():
            scale = one[name][2][parameter].abs().max().item()
            torch.testing.assert_close(gradient, one[name][2][parameter], rtol=1e-4, atol=1e-5 * scale + 1e-7, msg=name)


@dataclass(frozen=True)
class Case:
    """`batch`: sequences of one forward pass with two processes; one process makes twice as many passes."""

    stage: str
    batch: int
    group: int = 0
    aggregation: str = "dapo"
    scale: str = "group"
    mutant: Any = None


def cases() -> dict[str, Case]:
    import losses_mutants as mutants

    own_tokens = mutants.on_batch(lambda batch: {"num_items_in_batch": 2 * batch["completion_mask"].sum()})
    return {
        "warmup": Case("warmup", 4),
        "warmup, accumulated": Case("warmup", 1),
        "opd": Case("opd", 4),
        "opd, accumulated": Case("opd", 2),
        "grpo, whole groups": Case("teacher_rl", 4, 4),
        "grpo, a group in two processes": Case("teacher_rl", 4, 8),
        "grpo, accumulated": Case("teacher_rl", 1, 8),
        "grpo, sequence mean": Case("teacher_rl", 2, 4, "grpo", "batch"),
        "dr_grpo": Case("teacher_rl", 2, 8, "dr_grpo", "none"),
        "mutant: mean over each process's tokens": Case("opd", 4, mutant=own_tokens),
        "mutant: GRPO's mean over each process's tokens": Case("teacher_rl", 4, 4, mutant=own_tokens),
        "mutant: advantages of each process's part": Case("teacher_rl", 4, 8, mutant=mutants.put("num_generations", 4)),
    }


def worker(out: Path) -> None:
    torch.set_num_threads(1)
    world, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    found = {name: run(case, out.with_suffix(f".{rank}") / name, world) for name, case in cases().items()}
    if rank == 0:
        torch.save(found, out)


def run(case: Case, folder: Path, world: int) -> tuple[list[str], float, dict[str, torch.Tensor]]:
    """What differs from the reference, the loss and the gradients, the same in every process."""
    from losses_checks import grpo_changes, wanted_bridge, wanted_grpo
    from losses_reference import Grpo, mismatches
    from losses_replay import one_step
    from losses_samples import EIGHT, GROUPS, LONGEST
    from losses_stages import prepare, trainer_of

    settings = Grpo(case.group, aggregation=case.aggregation, scale=case.scale, longest=LONGEST)
    samples, changes = list(EIGHT), {"sequences_per_step": 8}
    if case.group:
        samples = list(GROUPS) if case.group == 4 else [replace(s, prompt=GROUPS[0].prompt) for s in GROUPS]
        changes = grpo_changes(samples, settings)
    changes |= {"per_device_batch_size": case.batch, "gradient_accumulation": 8 // (case.batch * world)}
    trainer = trainer_of(prepare(folder, case.stage, samples, world, **changes), case.stage, samples)
    assert trainer.accelerator.num_processes == world
    with pytest.MonkeyPatch.context() as patch:
        if case.mutant:
            case.mutant(patch, trainer)
        got = one_step(trainer)
    loss = trainer.accelerator.reduce(torch.tensor(got.loss, dtype=torch.float64), "mean").item()
    got = replace(got, loss=loss)
    wanted = wanted_grpo(samples, settings) if case.group else wanted_bridge(case.stage, samples, 1.0)
    return mismatches(got, wanted), loss, dict(got.gradients)


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
