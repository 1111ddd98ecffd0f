"""Spans without a word about who records them: nobody, or OpenTelemetry when an endpoint is set.

A process opens its tracing once and begins a trace, or goes on with one, by `Tracing.span`. Below that, `span` is a
piece of work in the trace that is going on, and nothing where there is none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol

from s2d.errors import Unavailable
from s2d.observe.settings import ObserveSettings

Kind = Literal["internal", "server", "producer", "consumer"]
Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A piece of work while it goes on."""

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, reason: str) -> None:
        """It did not do what it should; an exception that leaves it says so by itself."""
        ...


class Tracing(Protocol):
    """Where a process' spans go."""

    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: str | None = None,
        attributes: Attributes | None = None,
        expected: tuple[type[BaseException], ...] = (),
    ) -> AbstractContextManager[Span]:
        """A span from here to the end of `with`.

        Args:
            name: of a kind of work; no ids.
            parent: the W3C traceparent to go on from; one that is malformed begins a new trace. None: the span that is
                going on, if any.
            expected: exceptions with which it may end in good order.
        """
        ...

    def close(self) -> None:
        """Send what has not been sent; some seconds when the collector is away."""
        ...


class _Off:
    """Tracing and span in one, both of which do nothing."""

    def span(self, name: str, **_: object) -> _Off:
        return self

    def close(self) -> None: ...

    def rename(self, name: str) -> None: ...

    def set(self, attributes: Attributes) -> None: ...

    def fail(self, reason: str) -> None: ...

    def __enter__(self) -> _Off:
        return self

    def __exit__(self, *_: object) -> None: ...


OFF: Tracing = _Off()


class _Active(NamedTuple):
    tracing: Tracing
    traceparent: str


_ACTIVE: ContextVar[_Active | None] = ContextVar("s2d_span", default=None)


def open_tracing(settings: ObserveSettings, service: str) -> Tracing:
    """Where the spans of this process go; `close` it.

    Raises:
        Unavailable: an endpoint is set, and OpenTelemetry is not installed.
    """
    if not settings.otlp_endpoint:
        return OFF
    try:
        from s2d.observe.otel import Otel
    except ImportError as err:
        raise Unavailable(
            "Traces are asked for (S2D_OTLP_ENDPOINT or OTEL_EXPORTER_OTLP_ENDPOINT is set), and OpenTelemetry is not "
            "installed: pip install 's2d[otel]', or unset it."
        ) from err
    return Otel.sending_to(settings.otlp_endpoint, service)


@contextmanager
def span(
    name: str,
    *,
    kind: Kind = "internal",
    attributes: Attributes | None = None,
    expected: tuple[type[BaseException], ...] = (),
) -> Iterator[Span]:
    """A span below the one that is going on, as `with` or as a decorator; nothing where none is."""
    active = _ACTIVE.get()
    tracing = active.tracing if active else OFF
    with tracing.span(name, kind=kind, attributes=attributes, expected=expected) as one:
        yield one


@contextmanager
def activate(tracing: Tracing, traceparent: str) -> Iterator[None]:
    """For a `Tracing`: this span is the one that is going on."""
    token = _ACTIVE.set(_Active(tracing, traceparent))
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def current_traceparent() -> str | None:
    """The span that is going on, as 55 characters in W3C's form, for whoever continues the trace elsewhere."""
    active = _ACTIVE.get()
    return active.traceparent if active else None


def current_ids() -> dict[str, str]:
    """`trace_id` and `span_id` of the span that is going on, for log records."""
    active = _ACTIVE.get()
    if active is None:
        return {}
    _, trace_id, span_id, _ = active.traceparent.split("-")
    return {"trace_id": trace_id, "span_id": span_id}
