"""A whole service whose parts can be killed one by one: for the soak, the fault tests and load.

Redis, API and workers are the real programs, each in a process group of its own, and nothing starts a dead one again
but the caller. `Client` is the service as a user sees it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import redis
from sqlalchemy import make_url
from sqlalchemy.orm import Session

from s2d.embedded.part import Command, Part
from s2d.embedded.ports import claim_port, local_url
from s2d.embedded.redis import PrivateRedis
from s2d.embedded.service import api_command, worker_command
from s2d.runner.processes import alive
from s2d.settings import Settings
from s2d.store import jobs
from s2d.store.database import db_now
from s2d.store.tables import FileRow, JobRow, PlanRow

DEMO = Path(__file__).resolve().parents[1] / "s2d" / "demo" / "assets"
#: What a loaded machine with two cores may take for anything that is waited for.
PATIENCE_S = 120.0
FINAL = ("succeeded", "failed", "cancelled")


def until(what: str, ready: Callable[[], Any], patience_s: float = PATIENCE_S, every_s: float = 0.05) -> Any:
    """What `ready` returns once it is true.

    Raises:
        TimeoutError: it did not come true.
    """
    deadline = time.monotonic() + patience_s
    while not (found := ready()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true within {patience_s:.0f} s")
        time.sleep(every_s)
    return found


def stored_job(session: Session) -> JobRow:
    """A queued job for what looks at jobs and runs none; its plan and its file are empty."""
    session.add(PlanRow(id="plan_bench", document={}, created_at=db_now()))
    counts = {"bytes": 1, "labeled": 1, "unlabeled": 0}
    file = {"filename": "a", "purpose": "fine-tune", "sha256": "0", "report": {}, **counts}
    session.add(FileRow(id="file_bench", **file, created_at=db_now()))
    session.flush()
    return jobs.create(session, plan_id="plan_bench", file_id="file_bench", name=None)


def plain_http(**options: Any) -> httpx.Client:
    """To this host without TLS: loading the certificates of a TLS that is not used takes 30 ms of CPU."""
    return httpx.Client(**options, trust_env=False, verify=False)


class Client:
    """HTTP, with the key and the models of one state folder."""

    def __init__(self, url: str, key: str, models: Path) -> None:
        self.url, self.key, self.models = url, key, models
        headers = {"Authorization": f"Bearer {key}"}
        # However many there are: of more than 20, httpx closes idle ones, also one just given to another thread. No
        # longer than a while: uvicorn closes its side after 5 s, and a request may meet that.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None, keepalive_expiry=2)
        self.http = plain_http(base_url=f"{url}/v1", headers=headers, timeout=60, limits=limits)

    def upload(self, path: Path) -> str:
        with path.open("rb") as file:
            return str(self._done(self.http.post("/files", files={"file": file}, data={"purpose": "fine-tune"}))["id"])

    def plan(self, file_id: str, **options: Any) -> str:
        pair = {"teacher": str(self.models / "teacher"), "student": str(self.models / "student")}
        return str(self._done(self.http.post("/plans", json={**pair, "training_file": file_id, **options}))["id"])

    def start(self, plan: str, file_id: str, **headers: str) -> str:
        body = {"plan": plan, "training_file": file_id}
        return str(self._done(self.http.post("/jobs", json=body, headers=headers))["id"])

    def ask(self, job: str, what: str) -> dict[str, Any]:
        """`cancel`, `pause` or `resume`."""
        return self._done(self.http.post(f"/jobs/{job}/{what}"))

    def job(self, job: str) -> dict[str, Any]:
        return self._done(self.http.get(f"/jobs/{job}"))

    def events(self, job: str, after: int = 0) -> list[dict[str, Any]]:
        return list(self._events(job, after))

    def _events(self, job: str, after: int) -> Iterator[dict[str, Any]]:
        more = True
        while more:
            page = self._done(self.http.get(f"/jobs/{job}/events", params={"after": after, "limit": 1000}))
            yield from page["data"]
            more = page["has_more"]
            after = page["data"][-1]["seq"] if page["data"] else after

    def wait(self, job: str, *states: str, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """The job, once it is in one of these states.

        Raises:
            AssertionError: it has ended in another one.
        """

        def reached() -> dict[str, Any] | None:
            shown = self.job(job)
            assert shown["state"] in states or shown["state"] not in FINAL, shown
            return shown if shown["state"] in states else None

        # Each look costs the API milliseconds that on a small machine the job would have.
        found: dict[str, Any] = until(f"{job} {states}", reached, patience_s, every_s=0.2)
        return found

    def wait_for_step(self, job: str, stage: str, step: int) -> dict[str, Any]:
        """The job, once this stage has come to this step."""

        def reached() -> dict[str, Any] | None:
            shown = self.job(job)
            assert shown["state"] not in FINAL, shown
            return shown if shown["current_stage"] == stage and shown["step"] >= step else None

        found: dict[str, Any] = until(f"{job} {stage} {step}", reached)
        return found

    @staticmethod
    def _done(answer: httpx.Response) -> dict[str, Any]:
        assert answer.is_success, f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}"
        found: dict[str, Any] = answer.json()
        return found


class Rig:
    """The parts of a service on one state folder. Leaving it ends all of them with SIGKILL.

    Args:
        settings: beside the state folder, the port and the broker, which are the rig's own.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        self._stack = ExitStack()
        state = folder.absolute() / "state"
        shutil.copytree(DEMO, state / "models")
        self._redis = PrivateRedis.make()
        self._stack.callback(self._redis.remove)
        own = {"state_dir": state, "port": claim_port("127.0.0.1", 0), "redis_url": self._redis.url}
        self.settings = Settings(**{"lease_s": 5.0, "backoff_s": 0.0, "grace_s": 20.0, **settings, **own})
        self.settings.log_dir.mkdir()
        self._http = plain_http(base_url=local_url("127.0.0.1", self.settings.port), timeout=2)
        self._stack.callback(self._http.close)
        listening = Command("redis", self._redis.command(), {}, self._redis.folder, grace_s=5)
        self.redis = self._part(listening)
        self.api = self._part(api_command(self.settings))
        self.workers: list[Part] = []

    def __enter__(self) -> Rig:
        try:
            self.start_redis()
            self.start_api()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def client(self) -> Client:
        key = self.settings.key_file.read_text().strip()
        url = local_url("127.0.0.1", self.settings.port)
        return Client(url, key, self.settings.state_dir / "models")

    def start_redis(self) -> None:
        self.redis.start()
        until("Redis answers", self._redis.answers)

    def forget_everything(self) -> None:
        """What the broker holds is gone."""
        with redis.Redis(unix_socket_path=str(self._redis.socket)) as broker:
            broker.flushall()

    def start_api(self) -> None:
        self.api.start()
        until("the API answers", self._api_answers)

    def start_worker(self) -> Part:
        command = worker_command(self.settings)
        name = f"worker-{len(self.workers)}"
        node = ("--hostname", f"{name}@%h")
        part = self._part(Command(name, (*command.argv, *node), command.environment, command.cwd, command.grace_s))
        self.workers.append(part)
        part.start()
        return part

    def stages(self, job: str = "") -> list[psutil.Process]:
        """The living stage processes below this state folder, also those that lost their supervisor."""
        return [one for one in psutil.process_iter() if self._is_stage(one, job)]

    def _is_stage(self, process: psutil.Process, job: str) -> bool:
        place = self.settings.job_dir(job) if job else self.settings.state_dir
        try:
            words = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            return False
        return "s2d.stages" in words and str(place) in words and alive(process)

    def takes_writes(self) -> bool:
        """Whether nobody has SQLite's write lock for a second; PostgreSQL's writers do not wait for each other."""
        url = make_url(self.settings.database)
        if url.get_backend_name() != "sqlite":
            return True
        try:
            with closing(sqlite3.connect(url.database or "", timeout=1, isolation_level=None)) as connection:
                connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return False
        return True

    def _api_answers(self) -> bool:
        try:
            return self._http.get("/healthz").is_success
        except httpx.TransportError:
            return False

    def _part(self, command: Command) -> Part:
        part = Part(command, self.settings.log_dir)
        self._stack.callback(part.end)
        return part


def kill(part: Part) -> None:
    """SIGKILL to the part's whole group; what it had started in sessions of their own lives on."""
    part.end()


def stop(part: Part, patience_s: float = PATIENCE_S) -> None:
    """SIGTERM, and wait for it to end by itself."""
    part.terminate()
    until(f"{part.name} ends", lambda: not part.alive(), patience_s)
    part.end()


def freeze(part: Part) -> None:
    """All of its threads have stopped when this returns. The signal alone stops each when it next leaves the kernel,
    and until then it may take a lock."""

    def frozen() -> bool:
        part.signal(signal.SIGSTOP)
        deadline = time.monotonic() + 1
        while not (stopped := _stopped(part)) and time.monotonic() < deadline:
            time.sleep(0.01)
        # One that is starting a process waits for that, which is frozen too.
        if not stopped:
            thaw(part)
        return stopped

    until(f"{part.name} is frozen", frozen)


def _stopped(part: Part) -> bool:
    """Whether all threads of the part's group have stopped or ended, see proc(5)."""
    assert part.pid is not None
    guard = psutil.Process(part.pid)
    try:
        # Stages have groups of their own.
        group = [one.pid for one in (guard, *guard.children(recursive=True)) if os.getpgid(one.pid) == part.pid]
        states = [stat.read_text() for pid in group for stat in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (psutil.NoSuchProcess, OSError):
        return False
    return all(state.rpartition(")")[2].split()[0] in "TZX" for state in states)


def freeze_between_writes(rig: Rig, part: Part) -> None:
    """SQLite has one writer: one that is frozen in a write keeps all others waiting, the test's own service too."""
    freeze(part)
    while not rig.takes_writes():
        thaw(part)
        time.sleep(0.05)
        freeze(part)


def thaw(part: Part) -> None:
    part.signal(signal.SIGCONT)


def gone(processes: list[psutil.Process], within_s: float) -> bool:
    """Whether all of them end in that time; a frozen parent does not reap them, and they have ended all the same."""
    deadline = time.monotonic() + within_s
    while any(map(alive, processes)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
