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


@pytest.fixture
def settings() -> dict[str, Any]:
    """A test's own settings, by overriding this fixture."""
    return {}


@pytest.fixture
def fault(database_url: str, settings: dict[str, Any], tmp_path: Path) -> Iterator[Fault]:
    drill = (sys.executable, "-m", "s2d.stages.drill")
    with Rig(tmp_path, database_url=database_url, stage_command=drill, **settings) as rig:
        yield Fault(rig, tmp_path)
