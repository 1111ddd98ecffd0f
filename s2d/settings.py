"""Settings: read once from the environment (`S2D_…`) and passed down; there is no global state.

Without any, s2d runs embedded: SQLite, a private Redis server, one folder for everything (design decision 8).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr

from s2d.observe.settings import ObserveSettings
from s2d.plan.models import ModelPolicy


class Settings(ObserveSettings):
    state_dir: Path = Field(
        default=Path.home() / ".s2d", description="Database, uploads, jobs, checkpoints, logs, the first API key."
    )
    database_url: str | None = Field(default=None, description="sqlite:///… or postgresql+psycopg://…")
    redis_url: str | None = Field(default=None, description="Broker; without one `s2d up` starts a private server.")

    host: str = Field(default="127.0.0.1", description="Loopback unless told otherwise.")
    port: int = Field(default=8400, ge=0, le=65535)
    max_upload_bytes: int = Field(default=2 * 1024**3, gt=0)
    max_body_bytes: int = Field(default=4 * 1024**2, gt=0, description="Of a JSON request.")
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="Longest wait for a request's body, and 1 s more for each 64 KiB that came."
    )

    model_roots: tuple[Path, ...] = Field(default=(), description='Folders of local models, as JSON: ["/models"].')
    allow_hub: bool = Field(default=True, description="Read models from the Hugging Face hub.")

    lease_s: float = Field(default=30.0, gt=0, description="A worker silent for so long has lost its job.")
    grace_s: float = Field(default=30.0, gt=0, description="From SIGTERM to SIGKILL of a stage, for a last checkpoint.")
    max_attempts: int = Field(
        default=5, ge=1, description="Workers that one job may lose in a row without getting further."
    )
    backoff_s: float = Field(
        default=5.0, ge=0, description="Wait of a job that lost its worker; twice as long for each further one."
    )
    stage_command: tuple[str, ...] = Field(
        default=(), description='What runs a stage on one device, as JSON: ["nice", "python", "-m", "s2d.stages"].'
    )
    worker_slots: int = Field(default=1, ge=1, description="Jobs that one worker runs at once.")

    checkpoint_budget_gib: float = Field(
        default=200.0,
        ge=0,
        description="Disk that checkpoints of ended jobs may take; who ended first loses first.",
    )
    checkpoint_days: float = Field(
        default=14.0, ge=0, description="After so long a failed or cancelled job loses its checkpoints in any case."
    )

    serve_engine: Literal["auto", "transformers", "vllm", "remote"] = "auto"
    vllm_python: Path | None = Field(default=None, description="Interpreter of another environment that has vLLM.")
    vllm_url: str | None = Field(default=None, description="Base URL of a running vLLM server.")
    vllm_api_key: SecretStr | None = Field(default=None, description="Of the server at S2D_VLLM_URL.")
    serve_idle_s: float = Field(default=600.0, gt=0)
    serve_max_servers: int = Field(default=2, ge=1)
    serve_memory_gib: float | None = Field(
        default=None, gt=0, description="Host memory of all student servers; docs/deploy.md says what one takes."
    )
    serve_first_token_s: float = Field(default=300.0, gt=0, description="Longest wait for an answer's first byte.")
    serve_silence_s: float = Field(default=60.0, gt=0, description="Longest silence within an answer.")
    serve_answer_s: float = Field(default=1800.0, gt=0, description="Longest answer.")
    serve_max_requests: int = Field(default=128, ge=1, description="Requests that one student answers at once.")

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{self.state_dir.absolute() / 's2d.db'}"

    @property
    def model_policy(self) -> ModelPolicy:
        return ModelPolicy(roots=(self.state_dir.absolute() / "models", *self.model_roots), allow_hub=self.allow_hub)

    def file_dir(self, file_id: str) -> Path:
        return self.state_dir.absolute() / "files" / file_id

    def job_dir(self, job_id: str) -> Path:
        return self.state_dir.absolute() / "jobs" / job_id

    @property
    def log_dir(self) -> Path:
        return self.state_dir.absolute() / "logs"

    @property
    def key_file(self) -> Path:
        return self.state_dir.absolute() / "api-key"
