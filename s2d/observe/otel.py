"""Spans by OpenTelemetry, sent over OTLP/HTTP in the background. Imported only when traces are asked for.

The provider is this object's own and not OpenTelemetry's global one. The standard variables of the SDK count
(`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_RESOURCE_ATTRIBUTES`, …), but for `OTEL_SERVICE_NAME`: each
kind of process has a name of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span as OtelSpan
from opentelemetry.trace import SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from s2d import __version__
from s2d.observe.logs import redacted
from s2d.observe.trace import Attributes, Kind, Span, activate

#: The longest that an export may take with all its repetitions: so long a process may need to end.
EXPORT_TIMEOUT_S = 5.0
_W3C = TraceContextTextMapPropagator()


class Otel:
    """A `Tracing` whose spans go to `processor`."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": service, "service.version": __version__})
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("s2d", __version__)

    @classmethod
    def sending_to(cls, endpoint: str, service: str) -> Otel:
        """To the OTLP/HTTP collector with this base URL."""
        url = f"{endpoint.rstrip('/')}/v1/traces"
        return cls(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT_S)), service)

    def close(self) -> None:
        self._provider.shutdown()

    @contextmanager
    def span(
        self,
        name: str,
        *,
        kind: Kind = "internal",
        parent: str | None = None,
        attributes: Attributes | None = None,
        expected: tuple[type[BaseException], ...] = (),
    ) -> Iterator[Span]:
        # An empty context below: what is malformed begins a new trace.
        context = _W3C.extract({"traceparent": parent}, Context()) if parent else None
        begun = self._tracer.start_as_current_span(
            name,
            context,
            SpanKind[kind.upper()],
            dict(attributes or {}),
            # The log has the exception, under the same trace.
            record_exception=False,
            set_status_on_exception=False,
        )
        with begun as inner, activate(self, _traceparent()):
            outer = _Span(inner)
            try:
                yield outer
            except expected:
                raise
            except Exception as err:
                outer.fail(f"{type(err).__name__}: {err}")
                raise


class _Span:
    def __init__(self, inner: OtelSpan) -> None:
        self._inner = inner

    def rename(self, name: str) -> None:
        self._inner.update_name(name)

    def set(self, attributes: Attributes) -> None:
        self._inner.set_attributes(dict(attributes))

    def fail(self, reason: str) -> None:
        self._inner.set_status(StatusCode.ERROR, redacted(reason))


def _traceparent() -> str:
    """Of the current span."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier)
    return carrier["traceparent"]
