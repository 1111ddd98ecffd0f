"""Agreement between the processes of one launch; with a single process each function is the plain thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch.distributed as dist

T = TypeVar("T")


def from_first(decide: Callable[[], T]) -> T:
    """What `decide` returns in the first process, in all of them: it runs once, and nobody can differ."""
    if not dist.is_initialized():
        return decide()
    answer: list[T | None] = [decide() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(answer, src=0)
    return answer[0]  # type: ignore[return-value]


def barrier() -> None:
    """Wait until every process has come here."""
    if dist.is_initialized():
        dist.barrier()
