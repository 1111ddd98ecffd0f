"""A stage reports the most memory that it had, also after it gave it back, and nothing of its parent's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from s2d.report.document import StageSummary

PROGRAM = """
from s2d.stages.peak import peak_memory_gib
before = peak_memory_gib("cpu")
held = bytearray(300 << 20)
del held
print(before, peak_memory_gib("cpu"))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs procfs")
def test_the_peak_is_kept_and_is_the_process_own() -> None:
    held = bytearray(b"x" * (200 << 20))
    told = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True).stdout
    before, after = map(float, told.split())
    assert len(held) / 2**30 > before
    assert after - before == pytest.approx(300 / 1024, abs=0.02)


def test_reports_of_a_time_before_it_was_told_are_read() -> None:
    told = {"id": "opd", "arm": "workflow", "kind": "opd", "steps": 1, "tokens": 1, "flops": 1.0, "seconds": 1.0}
    assert StageSummary(**told, labels=0, dropped_prompts=0).peak_memory_gib is None
