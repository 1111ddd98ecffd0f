"""Fixtures that several rooms share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """The folder with GSM8K's train.jsonl and test.jsonl, found beside the repository."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "gsm8k"
    if not (folder / "train.jsonl").exists():
        reason = "GSM8K is not at ../shared/data/gsm8k (train.jsonl and test.jsonl, from the repository root)"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder
