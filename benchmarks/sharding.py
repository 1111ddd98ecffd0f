"""What two processes that train one model hold at most: each with all of its states, and with a share (FSDP2).

`python -m benchmarks.sharding`, some minutes. The model is trained as sharded stages train it: layers and the rest are
groups of their own, gathered from the first pass of a step to the end of backward, gradients are exchanged in fp32
after each pass. On a CPU, with gloo; a GPU has another allocator. Each way is run with malloc's heap and with pages of
its own for every tensor of over 1 MiB, so that what tensors take and what holes between them take can be told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.output import publish
from benchmarks.planner.cells import LARGE, MIDDLE, Cell
from benchmarks.planner.pairs import write_pair
from s2d.plan.machine import Hardware
from s2d.plan.memory import CONSTANTS, GIB, Way, Work, training
from s2d.plan.models import ModelPolicy, read_model

DEVICES, STEPS, SEQUENCES = 2, 4, 4
CELL = Cell("sharding", "teacher_rl", LARGE, MIDDLE, 4096, 16, 16, SEQUENCES, SEQUENCES)
WAYS, PAGES = ("data-parallel", "shared"), ("heap", "own")
RESULTS = Path(__file__).parent / "results"


def measured(model: Path, way: str, pages: str) -> float:
    """GiB at the peak of a step, over what a process had before the model; the larger of the processes.

    Raises:
        subprocess.CalledProcessError: a process failed.
    """
    own = {"MALLOC_MMAP_THRESHOLD_": str(1 << 20)} if pages == "own" else {}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(DEVICES)]
    command = [*launch, "--module", "benchmarks.sharding", "--train", way, "--model", str(model)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **own}
    subprocess.run(command, env=environment, check=True)
    return max(json.loads(file.read_text()) for file in model.glob("peak-*.json"))


def train(folder: Path, way: str) -> None:
    """What one of the processes does."""
    torch.distributed.init_process_group("gloo")
    before = _status("VmRSS")
    network: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    trained = network
    if way == "shared":
        for part in (*network.model.layers, network):
            fully_shard(part, reshard_after_forward=False)
    else:
        trained = DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)
    tokens = torch.randint(0, CELL.vocabulary, (SEQUENCES, CELL.prompt + CELL.completion))
    for step in range(STEPS):
        if step == STEPS // 2:
            # By then the optimizer's states are there; 5 sets the peak back (proc(5), clear_refs).
            Path("/proc/self/clear_refs").write_text("5")
        trained(input_ids=tokens, labels=tokens).loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    rank = torch.distributed.get_rank()
    (folder / f"peak-{rank}.json").write_text(json.dumps(_status("VmHWM") - before))
    torch.distributed.destroy_process_group()


def _status(name: str) -> float:
    """GiB, from /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / (1 << 20)


def expected(folder: Path, way: str) -> float:
    """GiB that the planner counts for the same, without libraries."""
    model = read_model(str(folder), ModelPolicy(roots=(folder.parent,), allow_hub=False))
    work = Work(model, (), SEQUENCES, CELL.prompt + CELL.completion, CELL.prompt, generates=False)
    machine = Hardware(device="cpu", devices=DEVICES, memory_gib=64, cpu_threads=1, tflops=1, bandwidth_gbs=1)
    memory = training(work, machine, Way(sharded=way == "shared"), SEQUENCES, checkpoint=False)
    return (memory.total - CONSTANTS["cpu"].runtime) / GIB


def page(document: dict[str, Any]) -> str:
    lines = [
        "# What a process holds when two train one model",
        "",
        f"`python -m benchmarks.sharding`, {document['date']}, {document['machine']}, torch {document['torch']}: peak "
        f"of a step in GiB over what a process had before the model, fp32, AdamW; a decoder of {LARGE.layers} layers, "
        f"{LARGE.hidden} wide.",
        "",
        "| states | counted | own pages | malloc's heap |",
        "| --- | ---: | ---: | ---: |",
    ]
    for way in WAYS:
        counted = document["expected"][way]
        found = [document["measured"][f"{way}, {pages}"] for pages in reversed(PAGES)]
        cells = [f"{value:.2f} ({value / counted - 1:+.0%})" for value in found]
        lines.append(f"| {way} | {counted:.2f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS / "sharding", help="path without suffix")
    parser.add_argument("--train", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train(arguments.model, arguments.train)
        return
    with TemporaryDirectory() as name:
        model = Path(write_pair(CELL, Path(name), weights=False)["teacher"])
        document = {
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "machine": f"{os.cpu_count()} cores, {platform.machine()}",
            "torch": torch.__version__,
            "expected": {way: expected(model, way) for way in WAYS},
            "measured": {f"{way}, {pages}": measured(model, way, pages) for way, pages in product(WAYS, PAGES)},
        }
    publish(document, page(document), arguments.out)


if __name__ == "__main__":
    main()
