"""How a run ended, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

LOG_LINES = 10


def show_end(console: Console, state: str, error: Mapping[str, Any] | None) -> None:
    """The final state; of a failure the reason, the last log lines where there are some, and what to do."""
    if error is None:
        console.print(Text(f"Job {state}.", "bold green" if state == "succeeded" else "bold yellow"))
        return
    where = f" in {error['stage']}" if error.get("stage") else ""
    step = f", step {error['step']}" if error.get("step") is not None else ""
    console.print(Text(f"Job {state}{where}{step} ({error['code']}): {error['message']}", "bold red"))
    for line in list(error.get("log") or ())[-LOG_LINES:]:
        console.print(Text(f"  {line}", "dim"), soft_wrap=True)
    if error.get("advice"):
        console.print(Text(f"What to do: {error['advice']}"))
