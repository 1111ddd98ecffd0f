"""Settings as the environment that gives the same settings to another process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from s2d.settings import Settings


def environment(settings: Settings) -> dict[str, str]:
    """`S2D_…` variables with which `Settings()` equals `settings`; paths are absolute, so any folder will do."""
    prefix = settings.model_config["env_prefix"]
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    return {f"{prefix}{name.upper()}": _text(value) for name, value in values.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value.expanduser().absolute())
    if isinstance(value, tuple):
        return json.dumps([_text(item) for item in value])
    return str(value)
