"""A whole embedded service on the demo's pair, and the service as a user of these tests sees it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny import DEMO, SHORT

from benchmarks import rig
from s2d.embedded.service import EmbeddedService
from s2d.settings import Settings

#: For a whole job, on a machine that does other things at the same time.
PATIENCE_S = 700.0


class Client(rig.Client):
    """HTTP to an embedded service; its plans are short, and a part that was given up ends every wait."""

    def __init__(self, service: EmbeddedService) -> None:
        settings = service.settings
        super().__init__(service.url, settings.key_file.read_text().strip(), settings.state_dir / "models")
        self.service = service

    def plan(self, file_id: str, **options: Any) -> str:
        return super().plan(file_id, **{**SHORT, **options})

    def wait(self, job: str, *states: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return super().wait(job, *states, patience_s=patience_s)

    def job(self, job: str) -> dict[str, Any]:
        self.service.check()
        return super().job(job)


def start(folder: Path, **settings: Any) -> EmbeddedService:
    """To be entered with `with`; its state folder, which gets a copy of the pair, is `folder/state`."""
    state = folder / "state"
    shutil.copytree(DEMO, state / "models")
    wanted = {
        "state_dir": state,
        "port": 0,
        "lease_s": 5.0,
        "grace_s": 20.0,
        "serve_engine": "transformers",
        **settings,
    }
    return EmbeddedService(Settings(**wanted), print)
