"""Logging of a whole process, set up in one place: text for people, JSON lines for machines, ids in both.

Keys, bearer tokens and passwords in URLs are taken out of every line, wherever they came from. That catches what looks
like one of ours; it does not promise to find any other secret. What a process writes without `logging` (a progress bar,
the interpreter's last words) is not JSON.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from s2d.observe.fields import bound
from s2d.observe.settings import ObserveSettings
from s2d.observe.trace import current_ids

#: Whose level S2D_LOG_LEVEL is. Libraries are heard from WARNING on: some tell every request or every SQL statement.
_OURS = ("s2d", "api", "worker", "uvicorn", "celery")
#: No secret is in a line without one of these; most lines need no further look.
_HINTS = ("s2d-", "earer", "://")
_SECRET = re.compile(
    r"(?P<key>\bs2d-)[A-Za-z0-9_-]{24,}"
    r"|(?P<bearer>\b[Bb]earer\s+)[A-Za-z0-9._~+/=-]+"
    r"|(?P<url>://[^/\s:@\"]*:)[^@\s/\"]+(?=@)"
)


def set_up(settings: ObserveSettings, service: str, **always: Any) -> None:
    """Make this process log to its standard error, in place of whatever was set up before.

    Args:
        service: `api`, `worker` or `stage`.
        always: ids that are true for the whole process, so that threads of libraries tell them too.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_Json({"service": service, **always}) if settings.log_format == "json" else _Text())
    level = logging.getLevelName(settings.log_level.upper())
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    for name in _OURS:
        logging.getLogger(name).setLevel(level)
    _take_over_uvicorn()
    logging.captureWarnings(True)


def _take_over_uvicorn() -> None:
    """Its lines come through our handler. Its access log is off: without a handler it does not even make the line."""
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = name != "uvicorn.access"


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s%(ids)s")

    def format(self, record: logging.LogRecord) -> str:
        ids = _ids()
        record.ids = f" [{' '.join(f'{name}={value}' for name, value in ids.items())}]" if ids else ""
        return redacted(super().format(record))


class _Json(logging.Formatter):
    def __init__(self, always: Mapping[str, Any]) -> None:
        super().__init__()
        self._always = always

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **_ids(),
            **getattr(record, "s2d", {}),
        }
        if record.exc_info and record.exc_info != (None, None, None):
            line["exception"] = self.formatException(record.exc_info)
        return redacted(json.dumps(line, default=str))


def _ids() -> dict[str, Any]:
    return {**bound(), **current_ids()}


def redacted(text: str) -> str:
    """The text with `***` in place of what looks like a key, a bearer token or a password in a URL."""
    if not any(hint in text for hint in _HINTS):
        return text
    return _SECRET.sub(lambda found: f"{found['key'] or found['bearer'] or found['url']}***", text)
