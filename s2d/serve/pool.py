"""The running student servers: started on demand, shared, bounded in number and memory, stopped when idle.

A server that dies while it is in use is started again; one whose student has got new weights is succeeded: the new one
starts and shows a token while the old one answers, then takes over, and the old one ends with its last answer.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2d.errors import S2DError, Unavailable
from s2d.serve.backoff import Backoff
from s2d.serve.engine import LocalEngine, RemoteEngine, choose
from s2d.serve.lease import Lease
from s2d.serve.process import ServerProcess
from s2d.serve.room import victims
from s2d.serve.settings import ServeSettings
from s2d.serve.slot import Slot

log = logging.getLogger(__name__)

WAITING_CALLERS = 32
#: That a remote server has a student, and under which name, is asked again after so long.
REMOTE_TRUST_S = 30.0


class StudentServers:
    """At most `settings.max_servers` servers. Thread-safe; `close` it, or its servers run until this process ends.

    It does not limit how many requests one server gets, and does not notice a server that hangs without dying: the
    forwarder's time limit does.
    """

    def __init__(self, settings: ServeSettings, engine: LocalEngine | RemoteEngine | None = None) -> None:
        self._settings = settings
        self._engine = engine or choose(settings)
        self._slots: dict[str, Slot] = {}
        # Successors that are starting, and servers that end with their last answer.
        self._coming: dict[str, Slot] = {}
        self._leaving: list[Slot] = []
        # Died in use: their path, and when they were used last.
        self._missed: dict[str, tuple[Path, float]] = {}
        self._remote: dict[str, tuple[str, float]] = {}
        self._asking = threading.Lock()
        self._backoff = Backoff()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        # Its own threads, because a start takes up to minutes and must not starve what else the loop delegates.
        self._callers = ThreadPoolExecutor(WAITING_CALLERS, thread_name_prefix="student-acquire")
        self._keeper = threading.Thread(target=self._keep_until_closed, name="student-keeper", daemon=True)
        self._keeper.start()

    def acquire(self, student_id: str, path: Path) -> Lease:
        """Blocks until the student in folder `path` answers; callers for one student share one start.

        Raises Unavailable with `retry_after_s`: all servers busy, failed to start (with the last log lines), or
        backing off after repeated failures.
        """
        if isinstance(self._engine, RemoteEngine):
            # One asks, and the others who came meanwhile find the answer.
            with self._asking:
                known = self.running_lease(student_id, path)
                if known is not None:
                    return known
                model = self._engine.model_for(student_id, path)
                self._remote[student_id] = model, time.monotonic() + REMOTE_TRUST_S
            return Lease(student_id, path, self._engine, self._engine.url, model)
        slot, first, leaving = self._claim(self._engine, student_id, path)
        if first:
            self._start(slot, leaving)
        try:
            slot.ready.result()
        except BaseException:
            self._release(slot)
            raise
        return self._lease(slot, self._engine)

    def running_lease(self, student_id: str, path: Path) -> Lease | None:
        """A lease without waiting, for an event loop; None when `acquire` has something to do first."""
        if isinstance(self._engine, RemoteEngine):
            model, until = self._remote.get(student_id, ("", 0.0))
            known = time.monotonic() < until
            return Lease(student_id, path, self._engine, self._engine.url, model) if known else None
        if not self._lock.acquire(blocking=False):
            return None
        try:
            slot = self._slots.get(student_id)
            if slot is None or slot.path != path or not slot.up() or slot.died():
                return None
            slot.in_flight += 1
        finally:
            self._lock.release()
        return self._lease(slot, self._engine)

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
            return [slot.student_id for slot in self._slots.values() if slot.up() and not slot.died()]

    def retire(self, student_id: str) -> None:
        """The student is gone: its server ends with its last answer."""
        with self._lock:
            self._missed.pop(student_id, None)
            gone = (self._slots.pop(student_id, None), self._coming.pop(student_id, None))
            self._leaving += (slot for slot in gone if slot is not None)

    def close(self) -> None:
        """Stops every server, also one that is starting; whoever waits for it gets Unavailable."""
        with self._lock:
            self._closed.set()
            slots = [*self._slots.values(), *self._coming.values(), *self._leaving]
            for some in (self._slots, self._coming, self._leaving):
                some.clear()
        for slot in slots:
            slot.server.stop()
        self._keeper.join()
        self._callers.shutdown()

    # --- taking a place ---

    def _claim(self, engine: LocalEngine, student_id: str, path: Path) -> tuple[Slot, bool, list[Slot]]:
        """The student's slot, whether this caller is to start it, and which idle ones must make room first."""
        with self._lock:
            if self._closed.is_set():
                raise Unavailable("student serving is shutting down: try again in a moment")
            self._drop_if_dead(student_id)
            slot, leaving = self._slots.get(student_id), list[Slot]()
            if slot is not None and slot.path != path and slot.up() and student_id not in self._coming:
                slot = self._succeeded(engine, slot, path)
            first = slot is None
            if slot is None:
                slot, leaving = self._new_slot(engine, student_id, path)
                self._slots[student_id] = slot
            slot.in_flight += 1
            return slot, first, leaving

    def _new_slot(self, engine: LocalEngine, student_id: str, path: Path) -> tuple[Slot, list[Slot]]:
        """A slot with room for it, and the idle ones that were taken out for that. Raises Unavailable."""
        self._backoff.check(student_id)
        launch = engine.launch(student_id, path)
        log_path = self._settings.log_dir / f"{re.sub(r'[^A-Za-z0-9._-]', '_', student_id)}.log"
        slot = Slot(student_id, path, ServerProcess(launch, log_path, self._settings.start_timeout_s))
        leaving = victims(self._settings, self._all(), launch.memory_gib)
        for other in leaving:
            self._forget(other)
        return slot, leaving

    def _succeeded(self, engine: LocalEngine, old: Slot, path: Path) -> Slot | None:
        """Who answers for a student with new weights: the old server while its successor starts, or while there is
        no room for one; None when the old one, idle, had to go first."""
        try:
            slot, leaving = self._new_slot(engine, old.student_id, path)
        except Unavailable as refused:
            log.warning("%s goes on with its former weights: %s", old.student_id, refused.message)
            return old
        if old in leaving:
            self._leaving.append(old)
            self._leaving += (other for other in leaving if other is not old)
            return None
        self._coming[old.student_id] = slot
        self._callers.submit(self._start_successor, slot, leaving)
        return old

    def _all(self) -> list[Slot]:
        return [*self._slots.values(), *self._coming.values(), *self._leaving]

    def _forget(self, slot: Slot) -> None:
        if self._slots.get(slot.student_id) is slot:
            del self._slots[slot.student_id]
        if slot in self._leaving:
            self._leaving.remove(slot)

    def _drop_if_dead(self, student_id: str) -> None:
        slot = self._slots.get(student_id)
        if slot is not None and slot.died():
            log.warning("the server of %s died; its last lines:\n%s", student_id, slot.server.log_tail())
            del self._slots[student_id]
            self._missed[student_id] = slot.path, slot.last_used
            self._backoff.failed(student_id)
            slot.server.stop()

    # --- starting and ending ---

    def _start(self, slot: Slot, leaving: list[Slot]) -> None:
        try:
            for other in leaving:
                # Before, not after: two models may not fit into memory together.
                other.server.stop()
            slot.server.start()
        except BaseException as error:
            with self._lock:
                self._forget(slot)
                self._backoff.failed(slot.student_id)
            slot.ready.set_exception(error)
        else:
            with self._lock:
                self._missed.pop(slot.student_id, None)
            slot.ready.set_result(None)

    def _start_successor(self, slot: Slot, leaving: list[Slot]) -> None:
        self._start(slot, leaving)
        with self._lock:
            if self._coming.pop(slot.student_id, None) is None:
                return  # the student was retired, or the pool closed, meanwhile
            if not slot.up():
                log.warning("%s goes on with its former weights: %s", slot.student_id, slot.ready.exception())
                return
            old = self._slots.get(slot.student_id)
            self._slots[slot.student_id] = slot
            if old is not None:
                self._leaving.append(old)

    def _lease(self, slot: Slot, engine: LocalEngine) -> Lease:
        launch = slot.server.launch
        return Lease(slot.student_id, slot.path, engine, launch.base_url, launch.model, lambda: self._release(slot))

    def _release(self, slot: Slot) -> None:
        with self._lock:
            slot.in_flight -= 1
            slot.last_used = time.monotonic()

    # --- keeping ---

    def _keep_until_closed(self) -> None:
        period_s = min(1.0, self._settings.idle_s / 4)
        while not self._closed.wait(period_s):
            try:
                self._keep()
            except Exception:
                # Whatever it was with one server: the others are kept on.
                log.exception("the student servers were not looked after this time")

    def _keep(self) -> None:
        for slot in self._take_unused():
            log.info("the server of %s is not needed any more", slot.student_id)
            slot.server.stop()
        for student_id, path in self._take_missed():
            self._callers.submit(self._revive, student_id, path)

    def _take_unused(self) -> list[Slot]:
        since = time.monotonic() - self._settings.idle_s
        with self._lock:
            taken = [slot for slot in self._slots.values() if slot.unused_since(since)]
            taken += [slot for slot in self._leaving if slot.idle()]
            for slot in taken:
                self._forget(slot)
        return taken

    def _take_missed(self) -> list[tuple[str, Path]]:
        """The students whose server died in use, unless nobody has wanted them for as long as one may be idle."""
        since = time.monotonic() - self._settings.idle_s
        with self._lock:
            for student_id in list(self._slots):
                self._drop_if_dead(student_id)
            self._missed = {name: missed for name, missed in self._missed.items() if missed[1] >= since}
            return [(name, path) for name, (path, _) in self._missed.items() if name not in self._slots]

    def _revive(self, student_id: str, path: Path) -> None:
        try:
            self.acquire(student_id, path).release()
        except S2DError as error:
            log.info("the server of %s is not started again yet: %s", student_id, error.message)


def _release_unclaimed(call: asyncio.Future[Lease]) -> None:
    if not call.cancelled() and call.exception() is None:
        call.result().release()
