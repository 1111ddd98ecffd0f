"""What an operator can say about student serving."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ServeSettings(BaseModel):
    """Student serving. All times are in seconds.

    `auto` means: the remote vLLM when `remote_url` is given, else vLLM when `vllm_python` is given or vLLM is
    installed beside s2d, else transformers' own server. A setting that the chosen engine would ignore is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["auto", "transformers", "vllm", "remote"] = "auto"
    vllm_python: Path | None = Field(None, description="Python interpreter of another environment that has vLLM")
    remote_url: str | None = Field(None, description="Base URL of a running vLLM, without /v1", pattern="^https?://")
    max_servers: int = Field(2, ge=1, description="Students that are served at the same time")
    idle_s: float = Field(600, gt=0, description="A server that nobody used for this long is stopped")
    start_timeout_s: float = Field(300, gt=0, description="From start to the first generated token")
    answer_timeout_s: float = Field(600, gt=0, description="Longest silence of a server that works on an answer")
    log_dir: Path = Field(description="One log file per student is written here")

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.engine == "remote" and self.remote_url is None:
            raise ValueError("engine 'remote' needs remote_url")
        if self.remote_url is not None and self.engine not in ("auto", "remote"):
            raise ValueError(f"remote_url is not used by engine {self.engine!r}: remove one of the two")
        if self.vllm_python is not None and (self.engine not in ("auto", "vllm") or self.remote_url is not None):
            raise ValueError("vllm_python is only used when s2d starts vLLM itself: remove it, or set engine 'vllm'")
        return self
