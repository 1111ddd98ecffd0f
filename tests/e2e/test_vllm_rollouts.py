"""vLLM as the rollout engine, in the environment that has it, on CPU."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import json, sys
from s2d.plan.document import Sampling
from s2d.rollouts.vllm_engine import VllmEngine

if __name__ == "__main__":
    engine = VllmEngine(sys.argv[1], dtype="float32", max_model_len=128, batch_size=8)
    ask = lambda seed: [
        [(rollout.ids, rollout.truncated) for rollout in group]
        for group in engine.generate([[5, 6, 7], [8, 9]], samples=3, sampling=Sampling(), max_tokens=12, seed=seed)
    ]
    drawn = [ask(1), ask(1), ask(2)]
    engine.close()
    print("RESULT", json.dumps(drawn))
"""


@pytest.mark.vllm
def test_rollouts_are_reproducible_and_say_whether_they_were_cut(random_student: Path, tmp_path: Path) -> None:
    model = tmp_path / "student"
    # vLLM takes an "@" for nothing special, but keep its cache keys plain.
    model.symlink_to(random_student)
    script = tmp_path / "rollouts.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    shown = subprocess.run(
        [os.environ["S2D_TEST_VLLM_PYTHON"], str(script), str(model)],
        env=environment, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    lines = [line for line in shown.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, shown.stderr[-3000:]
    first, again, other = json.loads(lines[0].removeprefix("RESULT "))
    assert first == again
    assert first != other
    assert [len(group) for group in first] == [3, 3]
    eos = 1
    for ids, truncated in (rollout for group in first for rollout in group):
        assert truncated == (len(ids) == 12 and ids[-1] != eos)
        assert eos not in ids[:-1]
