"""Another family of tasks, with another verifier, goes through every stage by the same code: one seed of
`python -m benchmarks.second_family`.

It does not claim that the workflow beats direct GRPO here: it does not, and benchmarks/results/second-family.md says
why.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from benchmarks import second_family

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return second_family.run_seed(0, tmp_path_factory.mktemp("seed"), time.monotonic())


@pytest.fixture(scope="module")
def mean(run: dict[str, Any]) -> dict[str, float]:
    return {name: arm["avg_at_k"] for name, arm in run["arms"].items()}
