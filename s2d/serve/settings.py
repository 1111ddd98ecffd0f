"""What an operator can say about student serving."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from s2d.serve.upstream import Limits


class ServeSettings(BaseModel):
    """Student serving. All times are in seconds.

    `auto` means: the remote vLLM when `remote_url` is given, else vLLM when `vllm_python` is given or vLLM is
    installed beside s2d, else transformers' own server. A setting that the chosen engine would ignore is refused.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["auto", "transformers", "vllm", "remote"] = "auto"
    vllm_python: Path | None = Field(None, description="Python interpreter of another environment that has vLLM")
    remote_url: str | None = Field(None, description="Base URL of a running vLLM, without /v1", pattern="^https?://")
    remote_key: SecretStr | None = Field(None, description="The remote vLLM's API key, if it wants one")
    max_servers: int = Field(2, ge=1, description="Students that are served at the same time")
    memory_gib: float | None = Field(None, gt=0, description="Host memory that all servers may take; null: any")
    idle_s: float = Field(600, gt=0, description="A server that nobody used for this long is stopped")
    start_timeout_s: float = Field(300, gt=0, description="From start to the first generated token")
    first_token_timeout_s: float = Field(300, gt=0, description="From the request to the answer's first byte")
    silence_timeout_s: float = Field(60, gt=0, description="Longest silence within an answer")
    answer_timeout_s: float = Field(1800, gt=0, description="From the request to the answer's end")
    log_dir: Path = Field(description="One log file per student is written here")

    @property
    def limits(self) -> Limits:
        return Limits(10.0, self.first_token_timeout_s, self.silence_timeout_s, self.answer_timeout_s)

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        if self.engine == "remote" and self.remote_url is None:
            raise ValueError("engine 'remote' needs remote_url")
        if self.remote_key is not None and self.remote_url is None:
            raise ValueError("remote_key is only used with remote_url: remove it")
        if self.remote_url is not None and self.engine not in ("auto", "remote"):
            raise ValueError(f"remote_url is not used by engine {self.engine!r}: remove one of the two")
        if self.vllm_python is not None and (self.engine not in ("auto", "vllm") or self.remote_url is not None):
            raise ValueError("vllm_python is only used when s2d starts vLLM itself: remove it, or set engine 'vllm'")
        return self
