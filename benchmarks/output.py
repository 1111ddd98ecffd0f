"""Where a benchmark's figures go."""

from __future__ import annotations

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil


def here() -> dict[str, str]:
    """When and on what machine figures were made."""
    machine = f"{psutil.cpu_count()} cores, {platform.machine()}"
    return {"date": datetime.now(UTC).date().isoformat(), "machine": machine}


def publish(document: dict[str, Any], markdown: str, out: Path) -> None:
    """All figures to OUT.json, the page to OUT.md and to the terminal."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown)
    print(markdown)
