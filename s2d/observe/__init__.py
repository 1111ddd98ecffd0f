"""What is seen of a process from outside: log lines with ids, and traces that go on from one process to the next.

The API, the worker and each stage's process call `set_up` for their logs and `open_tracing` for their spans, once, at
their start. Everything else only names ids (`bind`) and pieces of work (`span`), which costs nothing where nobody
listens. Metrics are the API's, see `api.metrics`. This room imports no other, and OpenTelemetry only when traces are
asked for.

Does not promise that a span or a line arrives: a killed process takes its unsent spans with it, and a collector that
is away loses what does not fit the queue.
"""

from s2d.observe.fields import bind, bound
from s2d.observe.logs import set_up
from s2d.observe.settings import ObserveSettings
from s2d.observe.trace import OFF, Attributes, Span, Tracing, current_traceparent, open_tracing, span

__all__ = [
    "OFF",
    "Attributes",
    "ObserveSettings",
    "Span",
    "Tracing",
    "bind",
    "bound",
    "current_traceparent",
    "open_tracing",
    "set_up",
    "span",
]
