"""A subset of `make bench-paper`: one seed of its own base models, the arms that the headline needs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ARMS = ("direct_grpo", "raw_teacher_bridge")


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_claim_is_seen_on_one_seed(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.paper_table", "--seeds", "1", "--out", str(tmp_path)]
    subprocess.run([*command, "--no-compute-matched", "--controls", *ARMS], check=True, cwd=ROOT)
    table = json.loads((tmp_path / "paper-table.json").read_text())
    arms = {name: arm["accuracy"]["mean"] for name, arm in table["arms"].items()}
    assert arms["rl_student"] - arms["direct_grpo"] > 0.5
    assert arms["opd_student"] > arms["direct_grpo"]
    assert arms["opd_student"] > arms["raw_teacher_bridge"]
    (run,) = table["runs"]
    assert {arm["problems"] for arm in run["arms"].values()} == {1000}
    updates = table["arms"]
    assert updates["raw_teacher_bridge"]["updates"] == updates["opd_student"]["updates"]
    claims = {claim["name"]: claim for claim in table["claims"]}
    assert set(claims) == {"a1", "a2", "d0", "e", "f"}
    assert claims["f"]["by_seed"] == [pytest.approx(arms["rl_student"] - arms["direct_grpo"])]
    text = (tmp_path / "paper-table.md").read_text()
    assert "one seed: no interval" in text
    assert (tmp_path / "paper-table.png").read_bytes().startswith(b"\x89PNG")
