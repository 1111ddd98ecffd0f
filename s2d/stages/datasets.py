"""From prompts to the dataset that TRL trains on, in an order that resume can rely on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it brings the training libraries, which the order of rows needs not
    from s2d.rollouts.prompts import Prompt


def training_order(rows: int, needed: int, seed: int) -> list[int]:
    """`needed` indices: shuffled passes over `rows`, one after the other.

    The whole run is laid out beforehand as one epoch, because TRL's own sampler forgets which epoch it was in when a
    run is resumed (trl#3247), while within an epoch its resume is exact.
    """
    order: list[int] = []
    generator = random.Random(seed)
    while len(order) < needed:
        epoch = list(range(rows))
        generator.shuffle(epoch)
        order.extend(epoch)
    return order[:needed]


def dataset(prompts: Sequence[Prompt], needed: int, seed: int, **columns: Sequence[Any]) -> Any:
    """A `datasets.Dataset` of `needed` rows in training order, with the prompts' own and further columns."""
    from datasets import Dataset

    table = {"prompt": [p.text for p in prompts], "answer": [p.answer for p in prompts], **columns}
    return Dataset.from_dict(table).select(training_order(len(prompts), needed, seed))
