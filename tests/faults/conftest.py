"""A service whose parts the test kills, on each database.

Its stages are drills (`s2d.stages.drill`): all of a stage but the training, so that a fault takes seconds. What needs
real training has files of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults_testing import Fault

from benchmarks.rig import Rig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that may take longest come first, so that one process is not left with them at the end."""
    items.sort(key=lambda item: -max((mark.args[0] for mark in item.iter_markers("timeout")), default=0))


@pytest.fixture
def settings() -> dict[str, Any]:
    """A test's own settings, by overriding this fixture."""
    return {}


@pytest.fixture
def fault(database_url: str, settings: dict[str, Any], tmp_path: Path) -> Iterator[Fault]:
    drill = (sys.executable, "-m", "s2d.stages.drill")
    with Rig(tmp_path, database_url=database_url, stage_command=drill, **settings) as rig:
        yield Fault(rig, tmp_path)
