"""Server processes and the pool, against a small real server process in place of an inference engine."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from s2d.errors import Unavailable
from s2d.serve import Lease, ServeSettings, StudentServers
from s2d.serve.engine import Launch, free_port
from s2d.serve.process import ServerFailed, ServerProcess

STUB = """
import json, os, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
mode, port = sys.argv[1], int(sys.argv[2])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("stub", mode, "started", os.getpid(), child.pid, flush=True)
if mode == "crash":
    sys.exit("weights are missing")
if mode == "slow":
    time.sleep(1)
class Handler(BaseHTTPRequestHandler):
    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def do_GET(self):
        self.answer(200, {"pids": [os.getpid(), child.pid], "secret": os.environ.get("S2D_DATABASE_URL")})
    def do_POST(self):
        if mode == "broken":
            self.answer(500, {"detail": "no kernel"})
        self.answer(200, {"choices": [{}], "usage": {"completion_tokens": 1}})
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


@dataclass
class StubEngine:
    """Starts the stub; the mode is the file name of the student's folder, up to the first dash."""

    script: Path
    launches: int = 0
    memory_gib: float = 0.0
    key = None
    text_fields = frozenset[str]()
    fits_at_once = True
    fields = frozenset[str]()
    keeps_stop = False

    def launch(self, student_id: str, path: Path) -> Launch:
        self.launches += 1
        port = free_port()
        command = (sys.executable, str(self.script), path.name.split("-")[0], str(port))
        return Launch(command, {}, self.script.parent, port, model=student_id, memory_gib=self.memory_gib)

    def fit(self, path: Path, body: dict[str, Any]) -> dict[str, Any]:
        return body


MakePool = Callable[..., StudentServers]


@pytest.fixture
def engine(tmp_path: Path) -> StubEngine:
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    return StubEngine(script)


@pytest.fixture
def make_pool(tmp_path: Path, engine: StubEngine) -> Iterator[MakePool]:
    pools = []

    def make(**settings: Any) -> StudentServers:
        defaults = {"log_dir": tmp_path / "logs", "start_timeout_s": 20}
        pools.append(StudentServers(ServeSettings(**(defaults | settings)), engine))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def pids(lease: Lease) -> list[int]:
    return list(httpx.get(lease.base_url + "/health").json()["pids"])


def eventually(condition: Callable[[], bool], seconds: float = 15) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def gone(*numbers: int) -> bool:
    def lives(number: int) -> bool:
        try:
            return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    return not any(map(lives, numbers))


def test_concurrent_callers_share_one_start_and_the_server_outlives_their_threads(
    make_pool: MakePool, engine: StubEngine
) -> None:
    pool = make_pool()
    with ThreadPoolExecutor(6) as callers:
        leases = list(callers.map(lambda _: pool.acquire("a", Path("slow")), range(6)))
    assert engine.launches == 1
    assert len({lease.base_url for lease in leases}) == 1
    # The thread that started it is gone; a kernel death signal would have killed the server with it.
    time.sleep(0.5)
    assert pool.running() == ["a"]
    assert not gone(*pids(leases[0]))


def test_close_ends_the_server_and_its_children(make_pool: MakePool) -> None:
    pool = make_pool()
    started = pids(pool.acquire("a", Path("ok")))
    pool.close()
    assert eventually(lambda: gone(*started))
    with pytest.raises(Unavailable):
        pool.acquire("a", Path("ok"))


def test_close_aborts_a_start(make_pool: MakePool) -> None:
    pool = make_pool()
    failure: list[BaseException] = []

    def acquire() -> None:
        try:
            pool.acquire("a", Path("slow"))
        except Unavailable as error:
            failure.append(error)

    caller = threading.Thread(target=acquire)
    caller.start()
    assert eventually(lambda: bool(pool._slots))
    pool.close()
    caller.join(timeout=10)
    assert isinstance(failure[0], ServerFailed)


def test_a_server_stopped_before_its_start_never_starts(engine: StubEngine, tmp_path: Path) -> None:
    server = ServerProcess(engine.launch("a", Path("ok")), tmp_path / "a.log", start_timeout_s=5)
    server.stop()
    with pytest.raises(ServerFailed, match="stopped before"):
        server.start()
    assert not server.alive()


def test_an_idle_server_is_stopped_and_a_leased_one_is_not(make_pool: MakePool) -> None:
    pool = make_pool(idle_s=0.4)
    lease = pool.acquire("a", Path("ok"))
    started = pids(lease)
    time.sleep(1)
    assert pool.running() == ["a"]
    lease.release()
    lease.release()
    assert eventually(lambda: gone(*started))
    assert pool.running() == []


def test_the_least_recently_used_idle_server_makes_room(make_pool: MakePool) -> None:
    pool = make_pool(max_servers=2)
    with pool.acquire("a", Path("ok")) as lease:
        first = pids(lease)
    pool.acquire("b", Path("ok")).release()
    pool.acquire("c", Path("ok")).release()
    assert gone(*first)
    assert sorted(pool.running()) == ["b", "c"]


def test_when_all_are_busy_the_caller_is_told_when_to_return(make_pool: MakePool) -> None:
    pool = make_pool(max_servers=1)
    with pool.acquire("a", Path("ok")), pytest.raises(Unavailable) as caught:
        pool.acquire("b", Path("ok"))
    assert caught.value.code == "students_busy"
    assert caught.value.retry_after_s > 0


def test_a_killed_server_is_started_again_and_then_left_alone_for_a_while(
    make_pool: MakePool, engine: StubEngine
) -> None:
    pool = make_pool()
    for _ in range(2):
        with pool.acquire("a", Path("ok")) as lease:
            started = pids(lease)
            os.kill(started[0], signal.SIGKILL)
            assert eventually(lambda: pool.running() == [])
    with pytest.raises(Unavailable, match="repeatedly") as caught:
        pool.acquire("a", Path("ok"))
    assert engine.launches == 2
    assert 0 < caught.value.retry_after_s <= 5
    assert eventually(lambda: gone(*started))  # the grandchild of the killed server too


def test_a_failed_start_says_what_the_server_said(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    with pytest.raises(ServerFailed, match="weights are missing"):
        pool.acquire("team/a", Path("crash"))
    child = int((tmp_path / "logs" / "team_a.log").read_text().split("started")[1].split()[1])
    assert eventually(lambda: gone(child))
    pool.acquire("team/a", Path("ok")).release()  # a single failure does not lock it out


def test_green_health_with_broken_generation_is_a_failed_start(make_pool: MakePool) -> None:
    with pytest.raises(ServerFailed, match="no kernel"):
        make_pool().acquire("a", Path("broken"))


def test_a_start_that_takes_too_long_is_given_up(make_pool: MakePool) -> None:
    with pytest.raises(ServerFailed, match=r"not ready within 0.3 s"):
        make_pool(start_timeout_s=0.3).acquire("a", Path("slow"))


def test_the_server_does_not_inherit_our_secrets(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2D_DATABASE_URL", "postgresql://user:password@host/db")
    with make_pool().acquire("a", Path("ok")) as lease:
        assert httpx.get(lease.base_url + "/health").json()["secret"] is None


def test_a_cancelled_caller_leaves_no_lease(make_pool: MakePool) -> None:
    pool = make_pool(max_servers=1)

    async def cancel_while_it_starts() -> None:
        call = asyncio.create_task(pool.acquire_async("a", Path("slow")))
        await asyncio.sleep(0.3)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        async with asyncio.timeout(10):
            while pool.running() != ["a"]:
                await asyncio.sleep(0.05)

    asyncio.run(cancel_while_it_starts())
    assert eventually(lambda: pool._slots["a"].in_flight == 0)


def test_servers_end_when_their_parent_is_killed(tmp_path: Path, engine: StubEngine) -> None:
    program = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_serve_pool import ServeSettings, StubEngine, StudentServers, pids
pool = StudentServers(ServeSettings(log_dir={str(tmp_path)!r}), StubEngine(Path({str(engine.script)!r})))
print(*pids(pool.acquire("a", Path("ok"))), flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server, child = map(int, parent.stdout.readline().split())
    guard = psutil.Process(server).ppid()
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert eventually(lambda: gone(server, child, guard))


# --- new weights, memory, death in use ------------------------------------------------------------------------------


def test_new_weights_take_over_once_they_answer_and_the_old_server_ends_with_its_last_answer(
    make_pool: MakePool,
) -> None:
    pool = make_pool()
    old = pool.acquire("a", Path("ok-1"))
    serving = pids(old)
    meanwhile = pool.acquire("a", Path("slow-2"))
    assert meanwhile.path == Path("ok-1"), "the old server answers while the new one starts"
    assert eventually(lambda: renewed(pool, "a", Path("slow-2")))
    meanwhile.release()
    time.sleep(1.5)
    assert pids(old) == serving, "it still works on an answer"
    old.release()
    assert eventually(lambda: gone(*serving))
    assert pool.running() == ["a"]


def renewed(pool: StudentServers, student: str, path: Path) -> bool:
    with pool.acquire(student, path) as lease:
        return lease.path == path


def test_new_weights_that_do_not_start_leave_the_old_server(make_pool: MakePool, engine: StubEngine) -> None:
    pool = make_pool()
    with pool.acquire("a", Path("ok")) as lease:
        serving = pids(lease)
    for _ in range(3):
        with pool.acquire("a", Path("crash-2")) as lease:
            assert lease.path == Path("ok")
        assert eventually(lambda: not pool._coming)
    assert not gone(*serving)
    assert engine.launches == 3, "after two failures it is left alone for a while"


@pytest.mark.parametrize("busy", [True, False])
def test_without_room_for_two_new_weights_wait_until_the_old_server_is_idle(make_pool: MakePool, busy: bool) -> None:
    pool = make_pool(max_servers=1)
    old = pool.acquire("a", Path("ok-1"))
    serving = pids(old)
    if not busy:
        old.release()
    with pool.acquire("a", Path("ok-2")) as lease:
        assert lease.path == Path("ok-1" if busy else "ok-2")
    assert gone(*serving) != busy


def test_servers_stay_within_the_memory_that_they_may_take(make_pool: MakePool, engine: StubEngine) -> None:
    pool = make_pool(max_servers=9, memory_gib=5)
    engine.memory_gib = 2
    first, second = (pool.acquire(name, Path("ok")) for name in ("a", "b"))
    with pytest.raises(Unavailable) as refused:
        pool.acquire("c", Path("ok"))
    assert refused.value.code == "students_busy"
    first.release()
    pool.acquire("c", Path("ok")).release()
    assert pool.running() == ["b", "c"]
    engine.memory_gib = 6
    with pytest.raises(Unavailable) as refused:
        pool.acquire("d", Path("ok"))
    assert refused.value.code == "student_too_large"
    assert pool.running() == ["b", "c"], "nobody had to go for one that does not fit anyway"
    second.release()


def test_a_server_that_dies_in_use_is_started_again_without_being_asked(
    make_pool: MakePool, engine: StubEngine
) -> None:
    pool = make_pool()
    with pool.acquire("a", Path("ok")) as lease:
        server = pids(lease)[0]
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: engine.launches == 2 and pool.running() == ["a"])
    with pool.acquire("a", Path("ok")) as lease:
        assert pids(lease)[0] != server


def test_a_retired_student_ends_with_its_last_answer(make_pool: MakePool) -> None:
    pool = make_pool()
    lease = pool.acquire("a", Path("ok"))
    serving = pids(lease)
    pool.retire("a")
    time.sleep(1.5)
    assert not gone(*serving)
    lease.release()
    assert eventually(lambda: gone(*serving))
    assert pool.running() == []


def test_a_log_that_somebody_took_away_stops_nobody(make_pool: MakePool, tmp_path: Path) -> None:
    pool = make_pool()
    with pool.acquire("a", Path("ok")) as lease:
        server = pids(lease)[0]
    (tmp_path / "logs" / "a.log").unlink()
    os.kill(server, signal.SIGKILL)
    assert eventually(lambda: gone(server))
    assert eventually(lambda: pool.running() == ["a"])
    assert pool._keeper.is_alive()


def test_a_folder_that_is_not_on_this_host_is_named(make_pool: MakePool, engine: StubEngine) -> None:
    engine.script = engine.script.parent / "nowhere" / "stub.py"
    with pytest.raises(ServerFailed, match=r"on this host in .*nowhere"):
        make_pool().acquire("a", Path("ok"))
