"""How much memory this process has taken at most."""

from __future__ import annotations

import resource
import sys
from pathlib import Path
from typing import Literal

GIB = 1 << 30
STATUS = Path("/proc/self/status")


def peak_memory_gib(device: Literal["cpu", "cuda"]) -> float:
    """GiB of the device, so far: what torch has reserved on a GPU (its context not counted), else the resident set.

    Of this process alone: the verifiers' processes have their own, and so has vLLM's engine.
    """
    if device == "cuda":
        import torch

        return float(torch.cuda.max_memory_reserved() / GIB)
    return _resident_bytes() / GIB


def _resident_bytes() -> int:
    # getrusage also counts what the parent had before this program was started (execve in getrusage(2)).
    if STATUS.exists():
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
