"""What the planner needs to know of a file of rows, without its text."""

from __future__ import annotations

from array import array
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from s2d.data.rows import read_rows


class Summary(BaseModel):
    """Counts of rows, and the length of their prompts in characters (all turns together)."""

    model_config = ConfigDict(frozen=True)

    labeled: int
    unlabeled: int
    prompt_chars_mean: float
    prompt_chars_p95: int
    prompt_chars_max: int


def summarize(path: Path) -> Summary:
    """Counts the rows in `path`; all zeros for an empty file. InvalidData on a line that is no row."""
    labeled, lengths = 0, array("L")
    for row in read_rows(path):
        labeled += row.answer is not None
        lengths.append(sum(len(message.content) for message in row.messages))
    ordered = sorted(lengths)
    return Summary(
        labeled=labeled,
        unlabeled=len(ordered) - labeled,
        prompt_chars_mean=sum(ordered) / max(1, len(ordered)),
        # The nearest-rank percentile: the smallest length that at least 95 % of the prompts do not exceed.
        prompt_chars_p95=ordered[-(-95 * len(ordered) // 100) - 1] if ordered else 0,
        prompt_chars_max=ordered[-1] if ordered else 0,
    )
