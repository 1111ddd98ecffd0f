"""The processes of a test, which come and go while they are looked at: its databases start some of their own accord."""

from __future__ import annotations

import psutil


def descendants(*words: str) -> list[psutil.Process]:
    """Those whose command line holds all of these words, or has them within one of its own."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if all(word in line for word in words):
            found.append(process)
    return found
