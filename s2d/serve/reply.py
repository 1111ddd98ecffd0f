"""The servers' replies, brought to the one shape that a strict OpenAI client accepts."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

from s2d.errors import InvalidRequest, S2DError, Unavailable
from s2d.serve.lease import Lease


class StudentFailed(S2DError):
    """A student's server failed on this request."""

    status = 502
    code = "student_failed"


def filled(reply: dict[str, Any], lease: Lease, stop: list[str]) -> dict[str, Any]:
    """A whole completion under the student's id, with every field that the client's types require."""
    chat = any("message" in choice for choice in reply["choices"])
    kind, prefix = ("chat.completion", "chatcmpl") if chat else ("text_completion", "cmpl")
    defaults = {"id": f"{prefix}-{uuid.uuid4().hex}", "object": kind, "created": int(time.time())}
    for index, choice in enumerate(reply["choices"]):
        choice.setdefault("index", index)
        choice.setdefault("logprobs", None)
        if "message" in choice:
            choice["message"].setdefault("content", None)
            choice["message"].setdefault("refusal", None)
        said, name = _said(choice)
        if said[name] is not None:
            cut = StopCut(stop)
            said[name] = cut.feed(said[name]) + cut.rest()
            choice["finish_reason"] = "stop" if cut.found else choice["finish_reason"]
    return defaults | reply | {"model": lease.student_id}


def _said(choice: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Where a choice has its text: a chat's message or its delta, or a completion itself."""
    if "message" in choice:
        return choice["message"], "content"
    return (choice["delta"], "content") if "delta" in choice else (choice, "text")


def server_error(lease: Lease, event_data: str) -> StudentFailed:
    """The error for an error that the server put into its stream."""
    return StudentFailed(f"the server of {lease.student_id} broke off: {_error_message(event_data)}")


def refusal(status: int, text: str, lease: Lease) -> S2DError:
    """The error for an answer that is not a completion; both servers' error bodies are understood."""
    message = _error_message(text) or f"HTTP {status}"
    if status in (429, 503):
        return Unavailable(f"the server of {lease.student_id} is not available: {message}")
    if status >= 500:
        return StudentFailed(f"the server of {lease.student_id} failed on this request: {message}")
    if "context length" in message:
        return InvalidRequest(message, code="context_length_exceeded", param="messages")
    return InvalidRequest(message)


def event(payload: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(payload, ensure_ascii=False).encode() + b"\n\n"


def error_event(error: S2DError) -> bytes:
    """The error chunk that ends a stream without `[DONE]`; the client raises it as APIError."""
    body = {"message": error.message, "type": "server_error", "param": error.param, "code": error.code}
    return event({"error": body})


class ChunkRewriter:
    """Chunks of one stream under the student's id. `finished` once a finish reason was seen.

    Usage comes as a last chunk without choices and only if asked for, as OpenAI sends it.
    """

    def __init__(self, lease: Lease, stop: list[str], include_usage: bool) -> None:
        self.finished = False
        self._lease = lease
        self._cut = StopCut(stop)
        self._include_usage = include_usage
        self._usage: dict[str, Any] | None = None
        self._last: dict[str, Any] = {}

    def rewrite(self, data: bytes) -> bytes:
        """The event to send for an event's data; may be empty. Raises StudentFailed for an error chunk."""
        try:
            chunk = json.loads(data)
        except ValueError as error:
            # transformers writes the message of an exception into its error chunk without escaping it.
            raise StudentFailed(f"the server of {self._lease.student_id} broke off: {data[:300]!r}") from error
        if "error" in chunk:
            raise server_error(self._lease, data.decode())
        chunk["model"] = self._lease.student_id
        self._usage = chunk.pop("usage", None) or self._usage
        self._last = {name: chunk[name] for name in ("id", "object", "created", "model")}
        if not chunk["choices"]:
            return b""
        for choice in chunk["choices"]:
            self._rewrite_choice(choice)
        return event(chunk)

    def end(self) -> bytes:
        """What follows the last chunk of a stream that ended as it should."""
        usage = event(self._last | {"choices": [], "usage": self._usage}) if self._include_usage else b""
        return usage + b"data: [DONE]\n\n"

    def _rewrite_choice(self, choice: dict[str, Any]) -> None:
        said, name = _said(choice)
        content = self._cut.feed(said.get(name) or "")
        if choice.setdefault("finish_reason", None) is not None:
            self.finished = True
            content += self._cut.rest()
            choice["finish_reason"] = "stop" if self._cut.found else choice["finish_reason"]
        if content or name in said:
            said[name] = content


class StopCut:
    """Ends a text before the first stop sequence, holding back only what may be the beginning of one."""

    def __init__(self, stop: list[str]) -> None:
        self.found = False
        self._stop = [sequence for sequence in stop if sequence]
        self._held = ""

    def feed(self, text: str) -> str:
        if self.found:
            return ""
        self._held += text
        ends = [end for end in (self._held.find(sequence) for sequence in self._stop) if end >= 0]
        if ends:
            self.found = True
            out, self._held = self._held[: min(ends)], ""
            return out
        keep = max((_overlap(self._held, sequence) for sequence in self._stop), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def rest(self) -> str:
        """What was held back, at the end of the text."""
        out, self._held = self._held, ""
        return out


def _overlap(text: str, sequence: str) -> int:
    """How many characters at the end of `text` begin `sequence`."""
    longest = min(len(text), len(sequence) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(sequence[:n])), 0)


def _error_message(text: str) -> str:
    """vLLM says {"error": {"message"}}, transformers {"detail"} or {"error": "…"}; an unhandled error is plain text."""
    try:
        body = json.loads(text)
    except ValueError:
        return text[:300]
    found = body.get("error", body.get("detail", body)) if isinstance(body, dict) else body
    return str(found["message"]) if isinstance(found, dict) and "message" in found else str(found)[:300]
