"""The settings that every process has, a stage's included; `s2d.settings.Settings` adds the service's own."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

#: The only settings that a stage's process is given. None of them is a secret of the service.
HANDED_ON = ("S2D_LOG_FORMAT", "S2D_LOG_LEVEL", "S2D_OTLP_ENDPOINT")


class ObserveSettings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix="S2D_", extra="ignore", frozen=True)

    log_format: Literal["text", "json"] = Field(default="text", description="json: one object per line.")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    otlp_endpoint: str | None = Field(
        default_factory=lambda: os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"),
        description="Traces go to this OTLP/HTTP collector, http://host:4318; without one there are none.",
    )

    @field_validator("log_format", "log_level", mode="before")
    @classmethod
    def _in_any_case(cls, given: Any) -> Any:
        return given.lower() if isinstance(given, str) else given
