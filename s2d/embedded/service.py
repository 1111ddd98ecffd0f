"""The embedded service as a whole: in which order its parts start and stop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack

import httpx

from s2d.embedded.environment import environment
from s2d.embedded.lock import state_lock
from s2d.embedded.part import Command, Part
from s2d.embedded.ports import claim_port, local_url
from s2d.embedded.redis import PrivateRedis
from s2d.embedded.supervisor import PartFailed, Supervisor, part_failed
from s2d.settings import Settings

__all__ = ["EmbeddedService", "PartFailed"]

START_TIMEOUT_S = 90.0
POLL_S = 0.05
#: Open event streams end with the API; nothing else of it takes long.
API_GRACE_S = 5
#: On top of the stage's own grace: the worker writes down what it hands back.
WORKER_MARGIN_S = 10.0


class EmbeddedService:
    """Redis (unless `settings.redis_url` names one), API and worker, from `with` to its end.

    Entering returns when the API answers; `wait` and `check` raise PartFailed when a part does not stay up. Leaving
    stops worker, API and Redis in this order. When this process is killed, the parts end within seconds all the same.
    """

    def __init__(self, settings: Settings, announce: Callable[[str], None]) -> None:
        self._wanted = settings
        self._announce = announce
        self._stack = ExitStack()
        self._supervisor: Supervisor | None = None
        #: As the parts have them: paths absolute, the port and the broker known. Valid inside `with`.
        self.settings = settings
        self.url = ""

    def __enter__(self) -> EmbeddedService:
        """Raises AlreadyRunning, PortBusy, InvalidRequest, Unavailable, PartFailed; then nothing is left running."""
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def check(self) -> None:
        """Raises PartFailed when a part was given up."""
        assert self._supervisor is not None, "check() is for inside `with`"
        self._supervisor.check()

    def wait(self) -> None:
        """Until a signal ends it. Raises PartFailed."""
        while True:
            self.check()
            time.sleep(0.2)

    def _start(self) -> None:
        wanted = self._wanted
        port = claim_port(wanted.host, wanted.port)
        self.url = local_url(wanted.host, port)
        self._stack.enter_context(state_lock(wanted, self.url))
        changes = {"port": port, "state_dir": wanted.state_dir.absolute()}
        self.settings = wanted.model_copy(update=changes)
        self.settings.log_dir.mkdir(exist_ok=True, mode=0o700)
        parts = [*self._start_redis(), self._start_part(api_command(self.settings))]
        self._wait_for_api(parts)
        # After the API, which brings the database up to date.
        parts.append(self._start_part(worker_command(self.settings)))
        self._supervisor = Supervisor(parts, self._announce)
        self._supervisor.start()
        self._stack.callback(self._supervisor.stop)

    def _start_redis(self) -> list[Part]:
        if self.settings.redis_url is not None:
            return []
        redis = PrivateRedis.make()
        self._stack.callback(redis.remove)
        self.settings = self.settings.model_copy(update={"redis_url": redis.url})
        part = self._start_part(Command("redis", redis.command(), {}, redis.folder, grace_s=5))
        self._wait_until(redis.answers, [part], part)
        return [part]

    def _start_part(self, command: Command) -> Part:
        part = Part(command, self.settings.log_dir)
        part.keep_old_log()
        part.start()
        self._stack.callback(part.stop)
        return part

    def _wait_for_api(self, parts: list[Part]) -> None:
        # One client for all looks: making one takes 30 ms of CPU, which the API needs for its start.
        with httpx.Client(base_url=self.url, timeout=2, trust_env=False) as client:
            self._wait_until(lambda: _answers(client), parts, parts[-1])

    @staticmethod
    def _wait_until(ready: Callable[[], bool], parts: list[Part], waited_for: Part) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            for part in parts:
                if not part.alive():
                    raise part_failed(part, "ended while the service was starting")
            if time.monotonic() > deadline:
                raise part_failed(waited_for, f"did not answer within {START_TIMEOUT_S:.0f} s")
            time.sleep(POLL_S)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").is_success
    except httpx.TransportError:
        return False


def api_command(settings: Settings) -> Command:
    options = ("--host", settings.host, "--port", str(settings.port))
    stop = ("--timeout-graceful-shutdown", str(API_GRACE_S))
    argv = (sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", *options, *stop)
    return _python(settings, "api", argv, grace_s=API_GRACE_S + 10)


def worker_command(settings: Settings) -> Command:
    # Threads: a job is a child process anyway, and a thread only watches over it.
    pool = ("--pool=threads", f"--concurrency={settings.worker_slots}")
    quiet = ("--without-gossip", "--without-mingle")
    # The first --quiet keeps Celery's banner out of the log; levels are S2D_LOG_LEVEL's.
    argv = (sys.executable, "-m", "celery", "-A", "worker.celery_app", "--quiet", "worker", *pool, *quiet)
    return _python(settings, "worker", argv, grace_s=settings.grace_s + WORKER_MARGIN_S)


def _python(settings: Settings, name: str, argv: tuple[str, ...], grace_s: float) -> Command:
    # In the state folder: both programs put the current folder on the import path, where anything could lie.
    return Command(name, argv, environment(settings) | {"PYTHONUNBUFFERED": "1"}, settings.state_dir, grace_s)
