"""Every reward of one model on one set of problems: kept, so that any comparison can be made later."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from s2d.atomic import write_atomic


@dataclass(frozen=True)
class Scores:
    """`rewards[i][j]`: completion j of problem i. `ids`: the problems, in order."""

    ids: list[str]
    rewards: list[list[float]]
    completion_tokens: int
    truncated: float
    seconds: float
    prompt_tokens: int = 0

    @property
    def means(self) -> list[float]:
        return [fmean(one) for one in self.rewards]

    def save(self, path: Path, **about: Any) -> None:
        write_atomic(path, json.dumps({**about, **self.__dict__}))


def load_scores(path: Path) -> Scores:
    document = json.loads(path.read_text())
    return Scores(**{name: document[name] for name in Scores.__dataclass_fields__ if name in document})
