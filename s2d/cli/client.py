"""The service over HTTP: JSON, uploads, and two kinds of stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import httpx

from s2d.cli import sse
from s2d.embedded.lock import running_url
from s2d.embedded.ports import is_loopback, local_url
from s2d.errors import NotAuthenticated, S2DError, Unavailable
from s2d.settings import Settings

#: An upload is checked row by row before it is answered, a plan may ask the hub.
TIMEOUT = httpx.Timeout(10, read=600, write=600)
#: The stream sends a comment at least this often, so a longer silence is a dead connection.
STREAM_SILENCE_S = 60.0
RECONNECT_FOR_S = 60.0
RECONNECT_PAUSE_S = 1.0


class ApiError(S2DError):
    """The service refused; the message is its own."""


class Client:
    """One service and one key. Use it in `with`."""

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        # A proxy is for other hosts, whatever the environment says.
        proxies = not is_loopback(urlsplit(url).hostname or "")
        headers = {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, trust_env=proxies)

    @classmethod
    def connect(cls, settings: Settings, url: str | None, key: str | None) -> Self:
        """The service at `url`, else the one that runs on the state folder, else where the settings would start it.

        Raises:
            NotAuthenticated: no key was given and the state folder has none.
        """
        found = url or running_url(settings) or local_url(settings.host, settings.port)
        return cls(found, key or _stored_key(settings))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def get(self, path: str, **params: Any) -> Any:
        """Raises ApiError, Unavailable."""
        known = {name: value for name, value in params.items() if value is not None}
        with self._reaching():
            return _checked(self._http.get(path, params=known)).json()

    def post(self, path: str, body: Mapping[str, Any] | None = None, *, patience_s: float | None = None) -> Any:
        """Wait `patience_s` seconds for an answer that takes longer than most. Raises ApiError, Unavailable."""
        timeout = httpx.Timeout(10, read=patience_s) if patience_s else TIMEOUT
        with self._reaching():
            return _checked(self._http.post(path, json=body, timeout=timeout)).json()

    def every(self, path: str) -> list[Any]:
        """All items of a list, page after page. Raises ApiError, Unavailable."""
        page = self.get(path, limit=1000)
        found: list[Any] = page["data"]
        while page["has_more"]:
            page = self.get(path, limit=1000, after=page["last_id"])
            found += page["data"]
        return found

    def delete(self, path: str) -> Any:
        """Raises ApiError, Unavailable."""
        with self._reaching():
            return _checked(self._http.delete(path)).json()

    def upload(self, path: Path) -> Any:
        """POST /v1/files; the file's resource. Raises ApiError, Unavailable."""
        with path.open("rb") as file, self._reaching():
            parts = {"file": (path.name, file, "application/jsonl")}
            return _checked(self._http.post("/v1/files", files=parts, data={"purpose": "fine-tune"})).json()

    def events(self, job_id: str, after: int = 0) -> Iterator[dict[str, Any] | None]:
        """A job's events from number `after` on until the job has ended; None while nothing happens.

        A broken connection is taken up again at the last event. Raises ApiError; Unavailable when the service stays
        away for `RECONNECT_FOR_S`.
        """
        last, lost_at = after, None
        while True:
            try:
                for event in self._event_stream(job_id, last):
                    lost_at = None
                    if event is not None and event.name == "done":
                        return
                    told = json.loads(event.data) if event else None
                    yield told
                    last = told["seq"] if told else last
            except httpx.TransportError as err:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() > lost_at + RECONNECT_FOR_S:
                    raise self._unreachable(err) from err
            yield None
            time.sleep(RECONNECT_PAUSE_S)

    def _event_stream(self, job_id: str, after: int) -> Iterator[sse.ServerEvent | None]:
        headers = {"Accept": "text/event-stream", "Last-Event-ID": str(after)}
        timeout = httpx.Timeout(10, read=STREAM_SILENCE_S)
        with self._http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers, timeout=timeout) as reply:
            yield from sse.parse(_checked(reply).iter_lines())

    def chat(self, body: Mapping[str, Any]) -> Iterator[str]:
        """POST /v1/chat/completions, streaming: the answer's text, piece by piece. Raises ApiError, Unavailable."""
        request = {**body, "stream": True}
        with self._reaching(), self._http.stream("POST", "/v1/chat/completions", json=request) as reply:
            for event in sse.parse(_checked(reply).iter_lines()):
                if event is None:
                    continue
                if event.data == "[DONE]":
                    return
                chunk = json.loads(event.data)
                if "error" in chunk:
                    raise ApiError(f"The answer broke off: {chunk['error']['message']}")
                yield from (choice["delta"].get("content") or "" for choice in chunk["choices"])
        raise ApiError("The answer broke off before its end. Ask again.")

    @contextmanager
    def _reaching(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as err:
            raise self._unreachable(err) from err

    def _unreachable(self, err: httpx.TransportError) -> Unavailable:
        return Unavailable(
            f"No s2d answers at {self.url} ({err}). Start it with `s2d up`, or set S2D_URL to where it runs."
        )


def _checked(reply: httpx.Response) -> httpx.Response:
    """The reply, unless it is a refusal. Raises ApiError with the problem's own words."""
    if reply.is_success:
        return reply
    reply.read()
    try:
        body = reply.json()
        message, code = body["detail"], body["code"]
    except (ValueError, KeyError, TypeError):
        # Not this service: a proxy, or another program on that port.
        raise ApiError(f"{reply.request.url} answered {reply.status_code}: {reply.text[:300].strip()}") from None
    raise ApiError(message, code=code, **(body.get("details") or {}))


def _stored_key(settings: Settings) -> str:
    if not settings.key_file.is_file():
        raise NotAuthenticated(
            f"No API key: set S2D_API_KEY, or start the service once with `s2d up` ({settings.key_file} is not there)."
        )
    return settings.key_file.read_text().strip()
