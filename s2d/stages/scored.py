"""What the teacher makes of each stored rollout, computed once and kept on disk (after arXiv 2604.13010).

Kept are the last hidden states, from which the output projection gives the full distribution: hidden size values a
token, where log-probabilities over the vocabulary would be a hundred times as many. A rollout is scored alone and
without padding when it is first read, so its values depend on nothing else, and a run that was killed goes on exactly.
It pays where a rollout is read more than once; the disk must hold hidden size x bytes for each token that is read.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from s2d.atomic import sync

Forward = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
"""Ids and mask, (1, T) each, and the number K of completion tokens → hidden states (1, K, H)."""


class ScoredOnce:
    """One file a rollout under `folder`; processes may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def batch(self, inputs: dict[str, torch.Tensor], forward: Forward) -> torch.Tensor:
        """(B, K, H) for the micro-batch, whose rows name their rollouts in `rollout`; zeros at padding."""
        rows = [self._row(inputs, row, forward) for row in range(len(inputs["rollout"]))]
        width = inputs["completion_ids"].size(1)
        padded = [torch.nn.functional.pad(row_KH, (0, 0, 0, width - row_KH.size(0))) for row_KH in rows]
        return torch.stack(padded).to(inputs["completion_ids"].device)

    def discard(self) -> None:
        """Give the disk space back."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _row(self, inputs: dict[str, Any], row: int, forward: Forward) -> torch.Tensor:
        path = self._folder / f"{int(inputs['rollout'][row])}.safetensors"
        if not path.exists():
            prompt, completion = (
                inputs[f"{part}_ids"][row][inputs[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")
            )
            ids_1T = torch.cat([prompt, completion]).unsqueeze(0)
            with torch.no_grad():
                hidden_1KH = forward(ids_1T, torch.ones_like(ids_1T), len(completion))
            partial = path.with_suffix(f".{os.getpid()}")
            save_file({"hidden": hidden_1KH[0].cpu().contiguous()}, partial)
            # A later process reads it without a hash, and half of a file may have the length of the whole.
            sync(partial)
            partial.rename(path)
        try:
            return load_file(path)["hidden"]
        except (OSError, SafetensorError):
            # Damaged on the disk, or an earlier version's on a host that fell over.
            path.unlink(missing_ok=True)
            return self._row(inputs, row, forward)
