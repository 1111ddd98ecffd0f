"""One stage as a child process in its own process group: started, followed through its event file, stopped.

Guarantees: when `run` returns, no process of the group is alive. Does not guarantee that a killed stage wrote a
checkpoint; the runner resumes from the newest valid one.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from s2d.atomic import write_atomic
from s2d.events import NewEvent
from s2d.observe import current_traceparent
from s2d.observe.settings import HANDED_ON
from s2d.runner.events import EventFile
from s2d.runner.layout import JobLayout
from s2d.runner.processes import await_end, kill, kill_tree, stage_processes
from s2d.runner.task import EXIT_INTERRUPTED, StageTask

Wish = Literal["run", "stop"]
"""`stop`: SIGTERM, a checkpoint, then the grace time."""

POLL_S = 0.1
#: A job is nobody's business: TRL would send what is trained, and how, with each trainer that it makes. It would do so
#: from a thread, whose look at the environment can meet another's change of it and end the process (getenv(3)).
QUIET = {"HF_HUB_DISABLE_TELEMETRY": "1", "VLLM_NO_USAGE_STATS": "1"}
VMSTAT = Path("/proc/vmstat")
#: Between the kernel's decision to kill and the end of a process that has much memory to give back.
OOM_WINDOW_S = 30.0


@dataclass(frozen=True)
class ChildEnd:
    """How the process ended: its exit status (negative: the signal) and the last lines that it printed."""

    status: int
    log_tail: tuple[str, ...]
    out_of_memory: bool = False
    """The kernel has killed for want of memory shortly before; whether it killed this one the status must tell."""

    @property
    def interrupted(self) -> bool:
        return self.status == EXIT_INTERRUPTED


def run(
    task: StageTask,
    *,
    command: list[str],
    environment: dict[str, str],
    on_start: Callable[[int], None],
    on_events: Callable[[list[NewEvent]], None],
    wish: Callable[[], Wish],
    grace_s: float,
) -> ChildEnd:
    """Run the stage to its end. `wish` is asked every `POLL_S` seconds; events arrive in the order of their file.

    `on_start` gets the process' number. Whatever it, `on_events` or `wish` raises ends the process group and is raised
    on.
    """
    folder = JobLayout(task.job_dir).stage(task.stage)
    folder.mkdir(parents=True, exist_ok=True)
    # Each process has its own: one that begins late, after another claim, must not take that one's epoch for its own.
    task_file = folder / f"task-{task.epoch}-{task.attempt:03d}.json"
    write_atomic(task_file, task.model_dump_json(indent=2))
    log = folder / f"log-{task.attempt:03d}.txt"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*command, str(task_file)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    kills = OomKills()
    tail = EventFile(task.job_dir, folder / task.events_name)
    try:
        on_start(process.pid)
        _follow(process, tail, on_events, wish, grace_s, kills)
    finally:
        _end_all(process, task_file)
    # What it wrote up to its last moment.
    if events := tail.read():
        on_events(events)
    tail.close()
    # A launcher waits for its other processes before it ends itself.
    return ChildEnd(process.returncode, _last_lines(log), out_of_memory=kills.within(grace_s + OOM_WINDOW_S))


def stage_command(devices: int) -> list[str]:
    """One process, or `accelerate launch` when the plan asks for more than one device."""
    if devices == 1:
        return [sys.executable, "-m", "s2d.stages"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"]
    # All that the user's own accelerate configuration could otherwise decide is said here.
    fixed = ["--config_file", os.devnull, "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launch, *fixed, "--num_processes", str(devices), "--main_process_port", "0", "--module", "s2d.stages"]


def environment(threads: int, gpus: int | None, grace_s: float) -> dict[str, str]:
    """A stage's environment: as many GPUs as the plan counts on, the trace that it belongs to, and none of the
    service's secrets.

    Args:
        threads: of each process.
        gpus: None: not for a GPU.
        grace_s: seconds that `run` gives a stage to stop; a launcher waits longer for its processes.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith("S2D_") or name in HANDED_ON}
    if traceparent := current_traceparent():
        kept["TRACEPARENT"] = traceparent
    if gpus is not None:
        # TRL refuses one process that sees several GPUs.
        visible = kept.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(visible[:gpus])
    fixed = {
        **QUIET,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONUNBUFFERED": "1",
        # cuBLAS is only deterministic with a fixed workspace (PyTorch notes on reproducibility).
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        # A launcher kills its processes 30 s after SIGTERM unless told otherwise; when that is due is ours to say.
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(math.ceil(grace_s) + 5),
    }
    return {**kept, **fixed}


def _follow(
    process: subprocess.Popen[bytes],
    tail: EventFile,
    on_events: Callable[[list[NewEvent]], None],
    wish: Callable[[], Wish],
    grace_s: float,
    kills: OomKills,
) -> None:
    deadline: float | None = None
    while process.poll() is None:
        if events := tail.read():
            on_events(events)
        wanted = wish()
        kills.look()
        if deadline is not None and time.monotonic() > deadline:
            return
        if wanted == "stop" and deadline is None:
            deadline = time.monotonic() + grace_s
            process.terminate()
        time.sleep(POLL_S)


def _end_all(process: subprocess.Popen[bytes], task_file: Path) -> None:
    below = kill_tree(process.pid)
    process.wait()
    # What a launcher had started when it was killed itself.
    left = stage_processes(lambda task: task == task_file)
    kill(left)
    await_end([*below, *left])


class OomKills:
    """The kernel's count of what it killed for want of memory, of all control groups (proc(5), vmstat). It says nothing
    of a process that dies hours after it has grown, so it is to be looked at often."""

    def __init__(self) -> None:
        self._count, self._grew = _oom_kills(), -math.inf

    def look(self) -> None:
        if (count := _oom_kills()) > self._count:
            self._count, self._grew = count, time.monotonic()

    def within(self, seconds: float) -> bool:
        """Whether it has grown in the last so many seconds."""
        self.look()
        return time.monotonic() - self._grew <= seconds


def _oom_kills() -> int:
    try:
        lines = VMSTAT.read_text().splitlines()
    except FileNotFoundError:  # not Linux
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


def _last_lines(log: Path, count: int = 30, crash: int = 10) -> tuple[str, ...]:
    """Of a crash in C code, whose stacks are long, have the innermost call first and tell other threads before the one
    that crashed: its last lines are the first `crash` of that thread's stack (see `faulthandler`)."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 32_768))
        lines = file.read().decode("utf-8", "replace").splitlines()
    said = [number for number, line in enumerate(lines) if line.startswith("Fatal Python error: ")]
    if said:
        stacks = range(said[-1] + 1, len(lines))
        thread = next((number for number in stacks if lines[number].startswith("Current thread ")), said[-1] + 1)
        lines = lines[: said[-1] + 1] + lines[thread : thread + crash - 1]
    return tuple(lines[-count:])
