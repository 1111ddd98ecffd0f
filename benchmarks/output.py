"""Where a benchmark's figures go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def publish(document: dict[str, Any], markdown: str, out: Path) -> None:
    """All figures to OUT.json, the page to OUT.md and to the terminal."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    out.with_suffix(".md").write_text(markdown)
    print(markdown)
