"""The whole life of a job with nothing but the stock `openai` client, its student served by the real vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from service_testing import start
from tiny import SHORT, labels

SCRIPT = Path(__file__).parents[2] / "examples" / "openai_client.py"
#: No control: the workflow alone is what the client asks for.
OPTIONS: dict[str, Any] = {
    **SHORT,
    "controls": [],
    "stages": {name: stage for name, stage in SHORT["stages"].items() if name != "direct_grpo"},
}


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_stock_client_drives_a_job_from_its_labels_to_the_students_answers(tmp_path: Path) -> None:
    vllm = {"serve_engine": "vllm", "vllm_python": os.environ["S2D_TEST_VLLM_PYTHON"]}
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps(OPTIONS))
    upload = labels(tmp_path / "labels.jsonl")
    with start(tmp_path, **vllm) as service:
        models = service.settings.state_dir / "models"
        key = service.settings.key_file.read_text().strip()
        told = subprocess.run(
            [sys.executable, SCRIPT, upload, "--student", models / "student", "--teacher", models / "teacher",
             "--plan", plan, "--suffix", "whole life", "--ask", "4*9+3="],
            env=os.environ | {"OPENAI_BASE_URL": f"{service.url}/v1", "OPENAI_API_KEY": key},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert told.returncode == 0, told.stdout + told.stderr
        assert "checkpoint" in told.stdout
        assert "student-whole-life-" in told.stdout
        passes_vllms_bytes(service.url, key)


def passes_vllms_bytes(url: str, key: str) -> None:
    """What an embedded server would refuse is vLLM's to answer: log-probabilities, several answers, usage, text."""
    with httpx.Client(base_url=f"{url}/v1", headers={"authorization": f"Bearer {key}"}, timeout=120) as client:
        student = client.get("/models").json()["data"][0]["id"]
        question = {"model": student, "messages": [{"role": "user", "content": "4*9="}], "max_tokens": 8}
        more = client.post("/chat/completions", json=question | {"n": 2, "logprobs": True, "top_logprobs": 2}).json()
        assert len(more["choices"]) == 2
        assert len(more["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2
        text = client.post("/completions", json={"model": student, "prompt": "4*9=", "max_tokens": 4}).json()
        assert (text["object"], text["model"], text["usage"]["completion_tokens"] > 0) == (
            "text_completion",
            student,
            True,
        )
        long = question | {"messages": [{"role": "user", "content": "4" * 5000}]}
        refused = client.post("/chat/completions", json=long)
        assert (refused.status_code, refused.json()["code"]) == (400, "context_length_exceeded"), refused.text
