"""The Celery app: one task, acknowledged early; the database decides what it means (design decision 2).

Run with `celery -A worker.celery_app worker --pool=threads`: a task only supervises a child process, so a thread is
enough, and the death of the worker's one process is the death of all its supervisors.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from celery import Celery
from celery.signals import setup_logging, worker_init, worker_ready, worker_shutdown, worker_shutting_down
from kombu.exceptions import OperationalError

from s2d.errors import Unavailable
from s2d.observe import OFF, Tracing, open_tracing, set_up
from s2d.services.context import Context, open_context
from s2d.settings import Settings
from s2d.store.outbox import Message
from worker.janitor import Janitor
from worker.outbox import Outbox, Resend
from worker.reaper import Reaper
from worker.threads import Periodic

TASK = "s2d.run_job"
#: So long a broker is waited for that is asked what it holds.
BROKER_PATIENCE_S = 5.0
#: Priorities at Redis (of 0, 3, 6, 9; 0 comes first): a job that lost its worker waits behind none that came later.
BEGUN, FRESH = 0, 6


def make_app(settings: Settings) -> Celery:
    """The app without a connection: nothing is opened before a worker starts."""
    app = Celery("s2d", broker=settings.redis_url, include=["worker.tasks"])
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_serializer="json",
        accept_content=["json"],
        # A job that waits here could run on an idle worker instead.
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A broker that went away must not take running jobs with it.
        worker_cancel_long_running_tasks_on_connection_loss=False,
    )
    return app


settings = Settings()
app = make_app(settings)


class Housekeeping:
    """What a worker process does beside its tasks: send the outbox, reap lost leases. Also knows when it must stop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._context: Context | None = None
        self._lock = threading.Lock()
        self._threads: list[Periodic] = []
        self.draining = threading.Event()
        self.tracing: Tracing = OFF

    @property
    def context(self) -> Context:
        with self._lock:
            if self._context is None:
                self._context = open_context(self._settings)
            return self._context

    def open_tracing(self) -> None:
        """Raises Unavailable, see `s2d.observe.open_tracing`."""
        self.tracing = open_tracing(self._settings, "s2d-worker")

    def start(self) -> None:
        self._threads = [
            Outbox(lambda: self.context, publish),
            Resend(lambda: self.context, self._settings.lease_s, lambda: held(app)),
            Reaper(lambda: self.context, self._settings.lease_s),
            Janitor(lambda: self.context),
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for thread in self._threads:
            thread.stop()
        self.tracing.close()


def publish(message: Message) -> None:
    """Hand a message to the broker. Raises kombu's OperationalError while it is away."""
    app.send_task(TASK, args=[message.job_id], priority=BEGUN if message.begun else FRESH, retry=False)


def held(app: Celery) -> int:
    """Messages that wait at the app's broker. Raises kombu's OperationalError while it is away."""
    patience = {"socket_timeout": BROKER_PATIENCE_S, "socket_connect_timeout": BROKER_PATIENCE_S}
    with app.connection_for_read(transport_options=patience) as connection:
        try:
            connection.ensure_connection(max_retries=1, interval_start=0)
            return int(connection.default_channel.queue_declare(app.conf.task_default_queue).message_count)
        except connection.recoverable_connection_errors as err:
            raise OperationalError(str(err)) from err


housekeeping = Housekeeping(settings)


@setup_logging.connect
def _on_setup_logging(**_: Any) -> None:
    """Instead of Celery's own: with a receiver of this signal it sets up nothing."""
    set_up(settings, "worker")


@worker_init.connect
def _on_init(**_: Any) -> None:
    if settings.redis_url is None:
        raise SystemExit("A worker needs a broker: set S2D_REDIS_URL, or use `s2d up`, which brings its own.")
    try:
        housekeeping.open_tracing()
    except Unavailable as err:
        raise SystemExit(err.message) from err


@worker_ready.connect
def _on_ready(**_: Any) -> None:
    logging.getLogger("s2d").info("worker ready; state folder %s", settings.state_dir)
    housekeeping.start()


@worker_shutting_down.connect
def _on_shutting_down(**_: Any) -> None:
    """SIGTERM: running stages write a checkpoint and their jobs go back to the queue."""
    housekeeping.draining.set()


@worker_shutdown.connect
def _on_shutdown(**_: Any) -> None:
    housekeeping.stop()
