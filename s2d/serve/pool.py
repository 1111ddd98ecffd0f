"""The running student servers: started on demand, shared, bounded in number, stopped when idle."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from s2d.errors import Unavailable
from s2d.serve.backoff import Backoff
from s2d.serve.engine import LocalEngine, RemoteEngine, choose
from s2d.serve.lease import Lease
from s2d.serve.process import ServerProcess
from s2d.serve.settings import ServeSettings

log = logging.getLogger(__name__)

WAITING_CALLERS = 32
BUSY_RETRY_S = 5


@dataclass
class _Slot:
    """One student's server. `ready` resolves when it has generated a token, or with the reason why not."""

    student_id: str
    server: ServerProcess
    ready: Future[None] = field(default_factory=Future)
    in_flight: int = 0
    last_used: float = field(default_factory=time.monotonic)

    def idle(self) -> bool:
        return self.ready.done() and self.in_flight == 0

    def died(self) -> bool:
        return self.ready.done() and not self.server.alive()


class StudentServers:
    """At most `settings.max_servers` servers. Thread-safe; `close` it, or its servers run until this process ends.

    It does not limit how many requests one server gets, and does not notice a server that hangs without dying: the
    forwarder's time limit does.
    """

    def __init__(self, settings: ServeSettings, engine: LocalEngine | RemoteEngine | None = None) -> None:
        self._settings = settings
        self._engine = engine or choose(settings)
        self._slots: dict[str, _Slot] = {}
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Its own threads, because a start takes up to minutes and must not starve what else the loop delegates.
        self._callers = ThreadPoolExecutor(WAITING_CALLERS, thread_name_prefix="student-acquire")
        self._reaper = threading.Thread(target=self._reap_until_closed, name="student-reaper", daemon=True)
        self._reaper.start()

    def acquire(self, student_id: str, path: Path) -> Lease:
        """Blocks until the student in folder `path` answers; callers for one student share one start.

        Raises Unavailable with `retry_after_s`: all servers busy, failed to start (with the last log lines), or
        backing off after repeated failures.
        """
        if isinstance(self._engine, RemoteEngine):
            model = self._engine.model_for(student_id, path)
            return Lease(student_id, path, self._engine, self._engine.url, model)
        slot, first, victim = self._claim(self._engine, student_id, path)
        if first:
            self._start(slot, victim)
        try:
            slot.ready.result()
        except BaseException:
            self._release(slot)
            raise
        launch = slot.server.launch
        return Lease(student_id, path, self._engine, launch.base_url, launch.model, lambda: self._release(slot))

    async def acquire_async(self, student_id: str, path: Path) -> Lease:
        """`acquire` for an event loop. A caller that is cancelled while waiting leaves no lease behind."""
        call = asyncio.get_running_loop().run_in_executor(self._callers, self.acquire, student_id, path)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(_release_unclaimed)
            raise

    def running(self) -> list[str]:
        """The students whose server answers now."""
        with self._lock:
            return [slot.student_id for slot in self._slots.values() if slot.ready.done() and not slot.died()]

    def close(self) -> None:
        """Stops every server, also one that is starting; whoever waits for it gets Unavailable."""
        with self._lock:
            self._closed.set()
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            slot.server.stop()
        self._reaper.join()
        self._callers.shutdown()

    def _claim(self, engine: LocalEngine, student_id: str, path: Path) -> tuple[_Slot, bool, _Slot | None]:
        """The student's slot, whether this caller is to start it, and which idle one must make room first."""
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("student serving is shutting down: try again in a moment")
            self._drop_if_dead(student_id)
            slot, victim = self._slots.get(student_id), None
            first = slot is None
            if slot is None:
                self._backoff.check(student_id)
                log_path = self._settings.log_dir / f"{re.sub(r'[^A-Za-z0-9._-]', '_', student_id)}.log"
                launch = engine.launch(student_id, path)
                slot = _Slot(student_id, ServerProcess(launch, log_path, self._settings.start_timeout_s))
                victim = self._make_room()
                self._slots[student_id] = slot
            slot.in_flight += 1
            return slot, first, victim

    def _drop_if_dead(self, student_id: str) -> None:
        slot = self._slots.get(student_id)
        if slot is not None and slot.died():
            log.warning("the server of %s died; its last lines:\n%s", student_id, slot.server.log_tail())
            del self._slots[student_id]
            self._backoff.failed(student_id)
            slot.server.stop()

    def _make_room(self) -> _Slot | None:
        """Takes the least recently used idle slot out, if one is needed."""
        if len(self._slots) < self._settings.max_servers:
            return None
        idle = [slot for slot in self._slots.values() if slot.idle()]
        if not idle:
            raise Unavailable(
                f"all {self._settings.max_servers} student servers are busy: try again in {BUSY_RETRY_S} s, "
                "or raise max_servers",
                code="students_busy",
            )
        victim = min(idle, key=lambda slot: slot.last_used)
        return self._slots.pop(victim.student_id)

    def _start(self, slot: _Slot, victim: _Slot | None) -> None:
        try:
            if victim is not None:
                # Before, not after: two models may not fit into memory together.
                victim.server.stop()
            slot.server.start()
        except BaseException as error:
            with self._lock:
                if self._slots.get(slot.student_id) is slot:
                    del self._slots[slot.student_id]
                self._backoff.failed(slot.student_id)
            slot.ready.set_exception(error)
        else:
            slot.ready.set_result(None)

    def _release(self, slot: _Slot) -> None:
        with self._lock:
            slot.in_flight -= 1
            slot.last_used = time.monotonic()

    def _reap_until_closed(self) -> None:
        period_s = min(5.0, self._settings.idle_s / 4)
        while not self._closed.wait(period_s):
            for slot in self._take_idle():
                log.info("the server of %s is idle", slot.student_id)
                slot.server.stop()

    def _take_idle(self) -> list[_Slot]:
        since = time.monotonic() - self._settings.idle_s
        with self._lock:
            taken = [slot for slot in self._slots.values() if slot.idle() and slot.last_used < since]
            for slot in taken:
                del self._slots[slot.student_id]
        return taken


def _release_unclaimed(call: asyncio.Future[Lease]) -> None:
    if not call.cancelled() and call.exception() is None:
        call.result().release()
