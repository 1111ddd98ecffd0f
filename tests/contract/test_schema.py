"""Our OpenAPI document against the service itself, by schemathesis: stateful, every check it has, no failure.

Questions to students are left out here: they are vLLM's to answer, and `tests/contract/test_openai.py` asks them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from api_testing import PLAN, Server, jsonl

from api.app import create_app
from s2d.settings import Settings

ROOT = Path(__file__).parents[2]
ASKS_STUDENTS = "chat/completions|/v1/completions|/v1/compare"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("seeded", [False, True])
def test_the_service_does_what_its_document_says(tmp_path: Path, seeded: bool) -> None:
    """Once with ids that nobody has, once with those of a file, a plan and a job that are there."""
    settings = Settings(state_dir=tmp_path / "state", allow_hub=False, serve_engine="transformers")
    with Server(create_app(settings)) as server:
        key = settings.key_file.read_text().strip()
        config = tmp_path / "schemathesis.toml"
        text = (ROOT / "schemathesis.toml").read_text()
        config.write_text(parameters(server.url, key) + text if seeded else text)
        options = ("--max-examples", "25", "--seed", "1", "--checks", "all", "--no-color")
        told = subprocess.run(
            [Path(sys.executable).with_name("schemathesis"), "--config-file", config, "run",
             f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {key}", *options,
             "--exclude-path-regex", ASKS_STUDENTS],
            capture_output=True, text=True, cwd=tmp_path, check=False,
        )  # fmt: skip
    assert told.returncode == 0, told.stdout[-8000:]
    cases = re.search(r"(\d+) generated, (\d+) passed", told.stdout)
    assert cases is not None, told.stdout[-2000:]
    assert int(cases[1]) == int(cases[2]) > 1000


def parameters(url: str, key: str) -> str:
    """A configuration that names what there is."""
    import httpx

    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False) as client:
        file = client.post("/v1/files", files={"file": ("a", jsonl(100))}).json()["id"]
        plan = client.post("/v1/plans", json=PLAN | {"training_file": file}).json()["id"]
        job = client.post("/v1/jobs", json={"plan": plan, "training_file": file}).json()["id"]
    named = {"file_id": file, "plan_id": plan, "job_id": job}
    return "[parameters]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in named.items()) + "\n"
