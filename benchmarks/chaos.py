"""What the soak does to a running service: faults drawn at random, each of which leaves it able to go on."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.rig import FINAL, Rig, freeze, kill, stop, thaw, until
from s2d.embedded.part import Part
from s2d.stages.drill import MODEL

#: How much more likely a fault is than the rarest.
WEIGHTS = {
    "trainer killed": 6, "worker killed": 4, "worker told to stop": 3, "worker frozen past its lease": 2,
    "checkpoint damaged and trainer killed": 2, "worker killed and its trainer frozen": 2, "API killed": 2,
    "Redis killed": 2, "Redis emptied": 2, "job paused and resumed": 4, "job cancelled and resumed": 4,
    "job cancelled for good": 1,
}  # fmt: skip
PAUSE_S = (0.3, 2.0)


class Chaos:
    """What is done to a running service. Each fault leaves it able to go on: what was killed is started again."""

    def __init__(self, rig: Rig, rng: random.Random, jobs: list[str]) -> None:
        self._rig = rig
        self._rng = rng
        self._client = rig.client
        self.jobs = jobs
        self.done: Counter[str] = Counter()
        #: Jobs that are to end cancelled.
        self.given_up: set[str] = set()
        #: (job, when) of each loss of a process, on this host's clock, which is also the database's here.
        self.losses: list[tuple[str, float]] = []
        self._faults: dict[str, Callable[[], bool]] = {
            "trainer killed": self._trainer,
            "worker killed": self._worker,
            "worker told to stop": self._drain,
            "worker frozen past its lease": self._frozen,
            "checkpoint damaged and trainer killed": self._checkpoint,
            "worker killed and its trainer frozen": self._orphan,
            "API killed": self._api,
            "Redis killed": self._redis,
            "Redis emptied": self._empty,
            "job paused and resumed": lambda: self._held("pause", "paused"),
            "job cancelled and resumed": lambda: self._held("cancel", "cancelled"),
            "job cancelled for good": self._give_up,
        }

    def strike(self) -> str | None:
        """One fault; its name, or None when there was nothing to harm."""
        (name,) = self._rng.choices(list(WEIGHTS), list(WEIGHTS.values()))
        if not self._faults[name]():
            return None
        self.done[name] += 1
        return name

    def rest(self) -> None:
        time.sleep(self._rng.uniform(*PAUSE_S))

    def _trainer(self) -> bool:
        return self._lose(self._rig.stages())

    def _lose(self, stages: list[psutil.Process]) -> bool:
        if not stages:
            return False
        victim = self._rng.choice(stages)
        job, when = job_of(victim), time.time()
        try:
            victim.kill()
        except psutil.NoSuchProcess:  # it has just ended
            return False
        if job is not None:
            self.losses.append((job, when))
        return True

    def _note(self, stages: list[psutil.Process]) -> None:
        for one in stages:
            if (job := job_of(one)) is not None:
                self.losses.append((job, time.time()))

    def _worker(self) -> bool:
        worker = self._rng.choice(self._rig.workers)
        self._note(below(worker))
        kill(worker)
        worker.start()
        return True

    def _drain(self) -> bool:
        worker = self._rng.choice(self._rig.workers)
        stop(worker)
        worker.start()
        return True

    def _frozen(self) -> bool:
        worker = self._rng.choice(self._rig.workers)
        self._note(below(worker))
        freeze(worker)
        time.sleep(1.5 * self._rig.settings.lease_s)
        thaw(worker)
        return True

    def _checkpoint(self) -> bool:
        stages = self._rig.stages()
        if not stages:
            return False
        victim = self._rng.choice(stages)
        job = job_of(victim)
        if job is None:
            return False
        try:
            victim.suspend()
        except psutil.NoSuchProcess:
            return False
        found = sorted(self._rig.settings.job_dir(job).glob("stages/*/checkpoints/checkpoint-*/" + MODEL))
        if found:
            newest = max(found, key=lambda path: path.stat().st_mtime_ns)
            newest.write_text("damaged")
        self._note([victim])
        victim.kill()
        return bool(found)

    def _orphan(self) -> bool:
        worker = self._rng.choice(self._rig.workers)
        stages = below(worker)
        for one in stages:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        self._note(stages)
        kill(worker)
        worker.start()
        return bool(stages)

    def _api(self) -> bool:
        kill(self._rig.api)
        self._rig.start_api()
        return True

    def _redis(self) -> bool:
        kill(self._rig.redis)
        time.sleep(self._rng.uniform(0, 2))
        self._rig.start_redis()
        return True

    def _empty(self) -> bool:
        self._rig.forget_everything()
        return True

    def _held(self, ask: str, state: str) -> bool:
        job = self._some_job()
        if job is None or not self._accepted(job, ask):
            return False
        until(f"{job} {state}", lambda: self._client.job(job)["state"] in (state, *FINAL))
        # A job that had ended before it was paused has ended.
        return self._accepted(job, "resume")

    def _give_up(self) -> bool:
        job = self._some_job()
        if job is None or not self._accepted(job, "cancel"):
            return False
        self.given_up.add(job)
        return True

    def _some_job(self) -> str | None:
        live = [job for job in self.jobs if job not in self.given_up and self._client.job(job)["state"] not in FINAL]
        return self._rng.choice(live) if live else None

    def _accepted(self, job: str, ask: str) -> bool:
        """False when the job has ended meanwhile: that is an answer and no fault."""
        answer = self._client.http.post(f"/jobs/{job}/{ask}")
        if answer.status_code not in (202, 409):
            raise RuntimeError(f"{ask} {job}: {answer.status_code} {answer.text}")
        return answer.status_code == 202


def below(worker: Part) -> list[psutil.Process]:
    """The stage processes that this worker supervises."""
    group = worker.pid
    return [one for one in psutil.Process(group).children(recursive=True) if job_of(one) is not None] if group else []


def job_of(stage: psutil.Process) -> str | None:
    """The job that a stage process works for, from its task file's path; None for another process."""
    try:
        words = stage.cmdline()
    except psutil.NoSuchProcess:
        return None
    found = [part for part in Path(words[-1]).parts if part.startswith("job_")] if words else []
    return found[0] if found and "s2d.stages" in " ".join(words) else None
