"""A checkpoint counts when its manifest does (design decision 4).

The manifest names every file with its size and sha256, the step, the sampler position and the labels spent so far. It
is written last and renamed into place, so a folder that was cut short has none. Resume takes the newest valid one; a
folder whose files do not match its manifest is set aside, never loaded.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from s2d.atomic import write_atomic

MANIFEST = "manifest.json"
_NAME = re.compile(r"checkpoint-(\d+)")
_log = logging.getLogger(__name__)


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    plan_id: str
    stage: str
    step: int
    sampler_position: int
    labels_spent: int
    files: dict[str, tuple[int, str]]
    """Name relative to the folder -> (bytes, sha256)."""


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(folder: Path, *, plan_id: str, stage: str, step: int, sampler_position: int, labels_spent: int) -> Manifest:
    """Write the manifest of a checkpoint whose files are all there."""
    files = {
        str(path.relative_to(folder)): (path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    manifest = Manifest(
        plan_id=plan_id,
        stage=stage,
        step=step,
        sampler_position=sampler_position,
        labels_spent=labels_spent,
        files=files,
    )
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1))
    return manifest


def check(folder: Path, plan_id: str) -> str | None:
    """What is wrong with this checkpoint; None when it may be resumed from."""
    try:
        manifest = Manifest.model_validate_json((folder / MANIFEST).read_text())
    except FileNotFoundError:
        return "it has no manifest: its writing was cut short"
    except (ValueError, json.JSONDecodeError) as err:
        return f"its manifest cannot be read: {err}"
    if manifest.plan_id != plan_id:
        return f"it belongs to plan {manifest.plan_id}"
    for name, (size, digest) in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or sha256_file(path) != digest:
            return f"{name} does not match its hash"
    return None


def newest_valid(root: Path, plan_id: str) -> Path | None:
    """The checkpoint to resume from; those that are not whole are renamed to `quarantine-…` on the way."""
    found = sorted(
        ((int(match[1]), path) for path in root.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))),
        reverse=True,
    )
    for _, path in found:
        trouble = check(path, plan_id)
        if trouble is None:
            return path
        _log.warning("%s is not used: %s", path.name, trouble)
        _quarantine(path)
    return None


def _quarantine(path: Path) -> None:
    number = len(list(path.parent.glob("quarantine-*")))
    path.rename(path.with_name(f"quarantine-{number}-{path.name}"))
