"""GET /metrics: figures in Prometheus' text format; docs/observability.md has the table.

Requests are counted by this process and start at 0 with it; jobs, the outbox and students are read from the database
at each scrape and are the same whichever API process is asked. No label holds an id, a key, a tenant or a raw path.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from fastapi import APIRouter, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from s2d import __version__
from s2d.services.context import Context
from s2d.services.health import service_figures
from s2d.store.figures import Figures

log = logging.getLogger(__name__)
router = APIRouter(tags=["metrics"], include_in_schema=False)

#: Where a student is asked.
INFERENCE_ROUTES = frozenset({"/v1/chat/completions", "/v1/completions"})
#: A scrape does not wait longer for the database, so that the process' own figures are told in any case.
DATABASE_TIMEOUT_S = 3.0
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_FIRST_BYTE_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


@router.get("/metrics")
async def scrape(request: Request) -> Response:
    """This process' figures and the database's."""
    metrics: Metrics = request.app.state.metrics
    figures = await metrics.database.read(request.app.state.context)
    # As it is, and not compressed or in another format, whatever the client prefers: every scraper reads this one.
    text = generate_latest(metrics.registry) + generate_latest(_Families(_of_database(figures)))
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)


class Metrics:
    """What one app counts, in a registry of its own, so that two apps in one process do not mix."""

    def __init__(self) -> None:
        self.registry = _Registry()
        self.database = DatabaseFigures()
        ProcessCollector(registry=self.registry)
        build = Info("s2d_build", "The version that runs.", registry=self.registry)
        build.info({"version": __version__})
        self.in_flight = Gauge(
            "s2d_http_requests_in_flight", "Requests whose answer is not complete.", registry=self.registry
        )
        self._requests = Counter(
            "s2d_http_requests", "Requests that ended.", ("method", "route", "status"), registry=self.registry
        )
        self._seconds = Histogram(
            "s2d_http_request_duration_seconds",
            "From the request's head to the answer's last byte.",
            ("method", "route"),
            registry=self.registry,
            buckets=_REQUEST_BUCKETS_S,
        )
        self._asked = Counter(
            "s2d_inference_requests",
            "Requests to students that ended.",
            ("route", "streamed", "status"),
            registry=self.registry,
        )
        self._first_byte = Histogram(
            "s2d_inference_first_byte_seconds",
            "From the request's head to the first byte of a student's answer.",
            ("route", "streamed"),
            registry=self.registry,
            buckets=_FIRST_BYTE_BUCKETS_S,
        )

    def ended(
        self, method: str, route: str, status: int | None, seconds: float, *, streamed: bool, first_byte_s: float | None
    ) -> None:
        """Count a request.

        Args:
            route: the template, or `none`.
            status: None when the client left before the answer began.
        """
        method = method if method in _METHODS else "other"
        kind = f"{status // 100}xx" if status else "none"
        self._requests.labels(method, route, kind).inc()
        self._seconds.labels(method, route).observe(seconds)
        if route in INFERENCE_ROUTES:
            how = "true" if streamed else "false"
            self._asked.labels(route, how, kind).inc()
            if kind == "2xx" and first_byte_s is not None:
                self._first_byte.labels(route, how).observe(first_byte_s)


class DatabaseFigures:
    """Reads the database's figures once at a time, however many ask; belongs to one event loop."""

    def __init__(self) -> None:
        self._reading: asyncio.Future[Figures | None] | None = None

    async def read(self, ctx: Context) -> Figures | None:
        """None when the database fails, or does not answer within `DATABASE_TIMEOUT_S`."""
        if self._reading is None or self._reading.done():
            self._reading = asyncio.ensure_future(run_in_threadpool(_read, ctx))
        done, _ = await asyncio.wait({self._reading}, timeout=DATABASE_TIMEOUT_S)
        if not done:
            log.warning("the database did not tell its figures within %.0f s", DATABASE_TIMEOUT_S)
            return None
        return self._reading.result()


def _read(ctx: Context) -> Figures | None:
    try:
        return service_figures(ctx)
    except SQLAlchemyError as err:
        log.warning("the database cannot tell its figures: %s", err)
        return None


def _of_database(figures: Figures | None) -> Iterable[Metric]:
    yield _gauge("s2d_database_up", "1 when the database told the figures below, else 0.", float(figures is not None))
    if figures is None:
        return
    jobs = GaugeMetricFamily("s2d_jobs", "Jobs by state.", labels=("state",))
    for state, count in figures.jobs.items():
        jobs.add_metric((state,), count)
    yield jobs
    yield _gauge(
        "s2d_oldest_queued_job_age_seconds", "How long a job has waited for a worker at most.", figures.oldest_queued_s
    )
    yield _gauge("s2d_jobs_lease_expired", "Jobs whose worker is lost.", figures.leases_expired)
    yield _gauge("s2d_outbox_unsent", "Messages that the broker should have had.", figures.outbox_unsent)
    yield _gauge("s2d_students", "Students that may be asked.", figures.students)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


class _Families(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


class _Registry(CollectorRegistry):
    """Without the time of birth that the library tells beside each counter: nobody reads it, and the text is half."""

    def collect(self) -> Iterable[Metric]:
        for family in super().collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
