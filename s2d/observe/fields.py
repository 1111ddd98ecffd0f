"""Ids that every log record carries while they are bound: request_id in the API, job_id, epoch and stage in a worker.

They are the context's (`contextvars`): a coroutine and what it hands to a thread pool have them, a thread that is
started by hand has none unless it runs in a copy of the context.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

_FIELDS: ContextVar[Mapping[str, Any]] = ContextVar("s2d_fields", default=MappingProxyType({}))


@contextmanager
def bind(**fields: Any) -> Iterator[None]:
    """Add these to what is bound, from here to the end of `with`."""
    token = _FIELDS.set({**_FIELDS.get(), **fields})
    try:
        yield
    finally:
        _FIELDS.reset(token)


def bound() -> Mapping[str, Any]:
    return _FIELDS.get()
