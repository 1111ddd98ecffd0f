"""What machine a plan is for: detected without torch, or as the request says.

The rates are datasheet peaks (dense bf16, without sparsity) and, for CPUs, a low guess per thread; `timing` multiplies
them with wide efficiencies.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

from s2d.errors import InvalidPlan
from s2d.plan.machine import Hardware
from s2d.plan.request import HardwareRequest

GIB = 1 << 30
CPU_TFLOPS_PER_THREAD = 0.1
CPU_BANDWIDTH_GBS = 15.0
#: A GPU that the table does not know is taken for a slow one.
UNKNOWN_TFLOPS, UNKNOWN_BANDWIDTH_GBS = 60.0, 500.0


class Gpu(NamedTuple):
    """Datasheet values: GiB, dense bf16 TFLOP/s, GB/s."""

    memory_gib: float
    tflops: float
    bandwidth_gbs: float


#: The first row whose words all occur in the name holds, so narrower names come first.
GPUS: tuple[tuple[str, Gpu], ...] = (
    ("b200", Gpu(179, 2250, 8000)),
    ("h200", Gpu(140, 989, 4800)),
    ("gh200", Gpu(95, 989, 4000)),
    ("h100 nvl", Gpu(93, 835, 3900)),
    ("h100 pcie", Gpu(79, 756, 2000)),
    ("h100", Gpu(79, 989, 3350)),
    ("h800", Gpu(79, 989, 3350)),
    ("a100 40gb", Gpu(39, 312, 1555)),
    ("a100", Gpu(79, 312, 1935)),
    ("a800", Gpu(79, 312, 1935)),
    ("l40s", Gpu(44, 362, 864)),
    ("l40", Gpu(44, 181, 864)),
    ("l4", Gpu(22, 121, 300)),
    ("a10g", Gpu(22, 70, 600)),
    ("a10", Gpu(22, 125, 600)),
    ("a40", Gpu(44, 150, 696)),
    ("a6000", Gpu(47, 155, 768)),
    ("6000 ada", Gpu(47, 364, 960)),
    ("rtx pro 6000", Gpu(94, 504, 1792)),
    ("5090", Gpu(31, 210, 1792)),
    ("4090", Gpu(23, 165, 1008)),
    ("3090", Gpu(23, 71, 936)),
)


def gpu_key(name: str) -> str | None:
    """What the table calls a GPU that nvidia-smi or a person names so; None when it has none."""
    words = set(name.lower().replace("-", " ").replace("_", " ").split())
    return next((key for key, _ in GPUS if set(key.split()) <= words), None)


def known_gpu(name: str) -> Gpu | None:
    """The table's row for a GPU; None when it has none."""
    key = gpu_key(name)
    return dict(GPUS)[key] if key else None


def detect() -> Hardware:
    """This machine: its GPUs where nvidia-smi lists some, else its CPU.

    Memory is what the machine (or the container) has, not what is free now.
    """
    gpus = _nvidia()
    if not gpus:
        return _cpu()
    name, memory = gpus[0][0], min(memory for _, memory in gpus)
    return _cuda(name, len(gpus), memory, _threads(len(gpus)))


def from_request(wish: HardwareRequest, detected: Hardware) -> Hardware:
    """The hardware to plan for: what the request says, and what was detected for the rest.

    Raises:
        InvalidPlan: several devices or a GPU's name on CPU, or a GPU of unknown memory.
    """
    other = bool(wish.name) and wish.name != detected.name
    device = wish.device or ("cuda" if other else detected.device)
    same = device == detected.device and not other
    if device == "cpu":
        _check_cpu(wish, other)
    if same:
        base = detected
    elif device == "cpu":
        base = _cpu(wish.cpu_threads)
    else:
        base = _described_gpu(wish, detected.cpu_threads)
    changed = wish.model_dump(exclude_none=True)
    if device == "cpu" and wish.cpu_threads:
        changed = {"tflops": round(CPU_TFLOPS_PER_THREAD * wish.cpu_threads, 3), **changed}
    return base.model_copy(update=changed | {"device": device})


def _check_cpu(wish: HardwareRequest, named: bool) -> None:
    if named:
        raise InvalidPlan(
            f"hardware.name ({wish.name}) names a GPU, and hardware.device is cpu, where it would have no effect: "
            "leave one of the two out.",
            param="hardware.name",
        )
    if (wish.devices or 1) > 1:
        raise InvalidPlan("A CPU plan has one training process: set devices to 1.", param="hardware.devices")


def _described_gpu(wish: HardwareRequest, threads: int) -> Hardware:
    gpu = known_gpu(wish.name or "")
    memory = wish.memory_gib or (gpu.memory_gib if gpu else None)
    if memory is None:
        raise InvalidPlan(
            "Say how much memory one GPU has (hardware.memory_gib, GiB): its name is not in the table.",
            param="hardware.memory_gib",
        )
    return _cuda(wish.name or "", wish.devices or 1, memory, threads)


def _cuda(name: str, devices: int, memory_gib: float, threads: int) -> Hardware:
    gpu = known_gpu(name)
    return Hardware(
        device="cuda",
        devices=devices,
        memory_gib=memory_gib,
        cpu_threads=threads,
        name=name,
        tflops=gpu.tflops if gpu else UNKNOWN_TFLOPS,
        bandwidth_gbs=gpu.bandwidth_gbs if gpu else UNKNOWN_BANDWIDTH_GBS,
    )


def _cpu(threads: int | None = None) -> Hardware:
    threads = threads or _threads(1)
    return Hardware(
        device="cpu",
        devices=1,
        memory_gib=_ram_gib(),
        cpu_threads=threads,
        tflops=round(CPU_TFLOPS_PER_THREAD * threads, 3),
        bandwidth_gbs=CPU_BANDWIDTH_GBS,
    )


def _threads(processes: int) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // processes)


def _ram_gib() -> float:
    """Memory of the machine or, where it is less, of the container, GiB to one decimal."""
    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return max(0.1, int(10 * total / GIB) / 10)


def _nvidia() -> list[tuple[str, float]]:
    """(name, GiB) of each visible GPU; empty where nvidia-smi is missing or has nothing to say."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
    except (subprocess.SubprocessError, OSError):
        return []  # installed without a working driver: there is no GPU to use
    return list(_visible(done.stdout.splitlines()))


def _visible(rows: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Keep the GPUs that CUDA_VISIBLE_DEVICES lets a process use."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    chosen = None if allowed is None else {part.strip() for part in allowed.split(",")}
    for row in rows:
        # A name may hold a comma.
        index, _, rest = row.partition(",")
        uuid, _, rest = rest.partition(",")
        name, _, mib = rest.rpartition(",")
        if chosen is None or chosen & {index.strip(), uuid.strip()}:
            # A GPU that shares the machine's memory has none of its own to tell.
            own = mib.strip().replace(".", "", 1).isdigit()
            yield name.strip(), int(10 * float(mib) / 1024) / 10 if own else _ram_gib()
