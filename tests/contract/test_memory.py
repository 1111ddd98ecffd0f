"""The memory that a student's server is said to take, held against what it takes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from tiny import DEMO

from s2d.serve import Lease, ServeSettings, StudentServers
from s2d.serve.engine import RemoteEngine, choose

STUDENT = DEMO / "student"


def resident_gib(processes: list[psutil.Process]) -> float:
    """Of all of them; what several share counts once (the kernel's proportional set size)."""
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 2**30


def ask(lease: Lease) -> None:
    """A long question and a long answer, so that the cache is in use."""
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "7" * 600}], "max_tokens": 100}
    httpx.post(
        f"{lease.base_url}/v1/chat/completions", json=body | {"model": lease.model}, timeout=300, trust_env=False
    ).raise_for_status()


def most_taken(lease: Lease, processes: Callable[[], list[psutil.Process]], asked: int) -> float:
    """The most in GiB while several questions are answered at once, and after them."""
    most = 0.0
    with ThreadPoolExecutor(asked) as pool:
        answers = [pool.submit(ask, lease) for _ in range(asked)]
        while not all(answer.done() for answer in answers):
            most = max(most, resident_gib(processes()))
            time.sleep(0.2)
    for answer in answers:
        answer.result()
    return max(most, resident_gib(processes()))


@pytest.mark.parametrize(("engine", "asked"), [("transformers", 2), pytest.param("vllm", 16, marks=[pytest.mark.vllm])])
@pytest.mark.timeout(900)
def test_the_estimate_is_not_below_the_truth_nor_far_above(engine: str, asked: int, tmp_path: Path) -> None:
    python = os.environ["S2D_TEST_VLLM_PYTHON"] if engine == "vllm" else None
    settings = ServeSettings(engine=engine, vllm_python=python, log_dir=tmp_path)
    kind = choose(settings)
    assert not isinstance(kind, RemoteEngine)
    before = set(psutil.Process().children(recursive=True))

    def processes() -> list[psutil.Process]:
        return [process for process in psutil.Process().children(recursive=True) if process not in before]

    servers = StudentServers(settings)
    try:
        with servers.acquire("s", STUDENT) as lease:
            taken = most_taken(lease, processes, asked)
    finally:
        servers.close()
    estimate = kind.launch("s", STUDENT).memory_gib
    assert taken <= estimate <= 2 * taken, f"{taken:.2f} GiB taken, {estimate:.2f} GiB estimated"
