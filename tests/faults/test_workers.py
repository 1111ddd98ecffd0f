"""Trainers and workers that are killed, frozen, doubled or told to stop (rows 1, 2, 6, 7, 21)."""

from __future__ import annotations

import random
import time
from typing import Any

import psutil
import pytest
from faults_testing import LONG, OPTIONS, Fault

from benchmarks.invariants import processes
from benchmarks.rig import freeze_between_writes, gone, kill, stop, thaw, until

STAGES = ("teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "direct_grpo", "evaluate")


def steps(fault: Fault, job: str, stage: str = "teacher_rl") -> list[int]:
    return [one["step"] for one in fault.client.events(job) if one["type"] == "metrics" and one["stage"] == stage]


def lost(made: list[int]) -> int:
    """How many steps were made twice, over all restarts."""
    return len(made) - len(set(made))


@pytest.mark.fault(1)
def test_a_killed_trainer_goes_on_from_its_last_checkpoint(fault: Fault) -> None:
    fault.rig.start_worker()
    undisturbed, harmed = fault.job(**LONG), fault.job(**LONG)
    fault.client.wait_for_step(harmed, "teacher_rl", 12)
    (trainer,) = fault.rig.stages(harmed)
    trainer.kill()
    fault.client.wait(harmed, "succeeded")
    fault.client.wait(undisturbed, "succeeded")
    made = steps(fault, harmed)
    assert sorted(set(made)) == list(range(1, 401))
    assert lost(made) <= 5, "at most one save interval"
    attempts = [one["data"]["attempt"] for one in fault.client.events(harmed) if one["type"] == "process"]
    assert attempts[:4] == [1, 1, 2, 2]
    assert fault.digest(harmed) == fault.digest(undisturbed), "the same batches in the same order"
    assert fault.client.job(harmed)["attempt"] == 1, "its worker never lost it"
    fault.check(harmed)


@pytest.mark.fault(2)
def test_the_orphan_of_a_killed_worker_ends_and_another_worker_goes_on(fault: Fault) -> None:
    first = fault.rig.start_worker()
    job = fault.job()
    fault.client.wait_for_step(job, "teacher_rl", 12)
    orphans = fault.rig.stages(job)
    kill(first)
    assert gone(orphans, within_s=fault.rig.settings.lease_s)
    fault.rig.start_worker()
    assert fault.client.wait(job, "succeeded")["attempt"] == 2
    assert fault.states(job) == ["queued", "running", "queued", "running", "succeeded"]
    assert sorted(set(steps(fault, job))) == list(range(1, 101)), "what the orphan wrote last is there too"
    fault.check(job)


@pytest.mark.fault(2)
def test_an_orphan_that_cannot_end_itself_is_ended_before_the_next_trainer_begins(fault: Fault) -> None:
    """Frozen, it can neither see that its supervisor is gone nor that its lease has run out."""
    first = fault.rig.start_worker()
    job = fault.job(**LONG)
    fault.client.wait_for_step(job, "teacher_rl", 12)
    (orphan,) = fault.rig.stages(job)
    orphan.suspend()
    kill(first)
    fault.rig.start_worker()
    fault.client.wait(job, "succeeded")
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    (end,) = (n for n, one in enumerate(processes(fault.client.events(job))) if one == ("ended", orphan.pid))
    assert end == 1, "its end is told before the second process begins"
    fault.check(job)


@pytest.mark.fault(2)
def test_a_job_that_lost_its_worker_goes_before_those_that_wait_for_their_first(fault: Fault) -> None:
    first = fault.rig.start_worker()
    job = fault.job()
    fault.client.wait_for_step(job, "teacher_rl", 12)
    # The next worker may take one while the lease of the lost one still runs.
    _, waiting = fault.job(seed=1, **LONG), fault.job(seed=2)
    kill(first)
    fault.rig.start_worker()
    fault.client.wait(job, "succeeded")
    assert fault.states(job) == ["queued", "running", "queued", "running", "succeeded"]
    fault.check(job)
    fault.client.wait(waiting, "running", "succeeded")
    assert fault.client.job(waiting)["started_at"] >= fault.client.job(job)["finished_at"]


@pytest.mark.fault(6)
def test_many_workers_with_many_messages_for_one_job_run_it_once(fault: Fault) -> None:
    from worker.celery_app import TASK, make_app

    workers = [fault.rig.start_worker() for _ in range(2)]
    app = make_app(fault.rig.settings)
    jobs = [fault.job() for _ in range(2)]
    for _ in range(20):
        for job in jobs:
            app.send_task(TASK, args=[job])
    for job in jobs:
        fault.client.wait(job, "succeeded")
        assert fault.states(job) == ["queued", "running", "succeeded"]
        assert steps(fault, job) == list(range(1, 101))
        fault.check(job)
    assert all(worker.alive() for worker in workers)


@pytest.mark.fault(7)
def test_a_worker_that_overslept_its_lease_writes_nothing_more(fault: Fault) -> None:
    sleeper = fault.rig.start_worker()
    job = fault.job(**LONG)
    fault.client.wait_for_step(job, "teacher_rl", 12)
    (trainer,) = fault.rig.stages(job)
    freeze_between_writes(fault.rig, sleeper)
    assert gone([trainer], within_s=2 * fault.rig.settings.lease_s), "its stage does not trust a silent supervisor"
    fault.rig.start_worker()
    # Awake again while the other one is at work on it.
    until("the second claim", lambda: fault.client.job(job)["attempt"] == 2)
    thaw(sleeper)
    fault.client.wait(job, "succeeded")
    until("the sleeper notices", lambda: "the lease is lost" in sleeper.log_path.read_text())
    assert fault.states(job) == ["queued", "running", "queued", "running", "succeeded"]
    fault.check(job)
    # It is of use again.
    kill(fault.rig.workers[1])
    again = fault.job()
    fault.client.wait(again, "succeeded")
    fault.check(again)


@pytest.mark.fault(21)
def test_cancelled_at_any_moment_of_every_stage_it_goes_on_where_it_was(fault: Fault) -> None:
    seed = time.time_ns()
    print("seed", seed)
    rng = random.Random(seed)
    fault.rig.start_worker()
    undisturbed = fault.job()
    fault.client.wait(undisturbed, "succeeded")
    job = fault.job()
    cancelled = 0
    for stage in STAGES:
        until(stage, lambda stage=stage: has_come_to(fault.client.job(job), stage))
        time.sleep(rng.uniform(0, 0.6))
        answer = fault.client.http.post(f"/jobs/{job}/cancel")
        if answer.status_code == 409:
            # The last stage may have ended meanwhile; then the job has.
            assert fault.client.job(job)["state"] == "succeeded"
            break
        fault.client.wait(job, "cancelled")
        cancelled += 1
        assert fault.rig.stages(job) == []
        fault.client.ask(job, "resume")
    fault.client.wait(job, "succeeded")
    assert cancelled
    assert lost(steps(fault, job)) == 0, "a stop saves its last step"
    assert fault.digest(job) == fault.digest(undisturbed)
    fault.check(job)


def has_come_to(shown: dict[str, Any], stage: str) -> bool:
    """A short stage may begin and end between two looks."""
    now = shown["current_stage"]
    return shown["state"] == "succeeded" or (now is not None and STAGES.index(now) >= STAGES.index(stage))


@pytest.mark.fault(2)
def test_a_job_that_nobody_claims_again_is_tidied_by_whoever_finds_it(fault: Fault) -> None:
    """Its worker was lost while it was being cancelled, and its frozen trainer cannot see that."""
    first = fault.rig.start_worker()
    job = fault.job(**LONG)
    fault.client.wait_for_step(job, "teacher_rl", 12)
    (orphan,) = fault.rig.stages(job)
    orphan.suspend()
    fault.client.ask(job, "cancel")
    kill(first)
    fault.rig.start_worker()
    fault.client.wait(job, "cancelled")
    assert gone([orphan], within_s=60)
    until("its end is told", lambda: processes(fault.client.events(job))[-1] == ("ended", orphan.pid))
    fault.check(job)
    fault.client.ask(job, "resume")
    fault.client.wait(job, "succeeded")
    fault.check(job)


@pytest.mark.fault(21)
@pytest.mark.parametrize("settings", [{"grace_s": 2.0}])
def test_a_stage_that_does_not_stop_is_killed_after_the_grace_time(fault: Fault) -> None:
    fault.rig.start_worker()
    job = fault.job(**LONG)
    fault.client.wait_for_step(job, "teacher_rl", 12)
    (trainer,) = fault.rig.stages(job)
    trainer.suspend()
    asked = time.monotonic()
    assert fault.client.ask(job, "cancel")["state"] == "cancelling"
    fault.client.wait(job, "cancelled")
    assert time.monotonic() - asked > fault.rig.settings.grace_s
    fault.client.ask(job, "resume")
    fault.client.wait(job, "succeeded")
    assert lost(steps(fault, job)) <= 5
    fault.check(job)


@pytest.mark.fault(21)
def test_a_worker_that_is_told_to_stop_hands_its_job_back_with_a_checkpoint(fault: Fault) -> None:
    """A rolling restart: the old worker lets go, the new one goes on."""
    old = fault.rig.start_worker()
    job, waiting = fault.job(), fault.job(seed=1)
    fault.client.wait_for_step(job, "teacher_rl", 12)
    stop(old)
    shown = fault.client.job(job)
    assert (shown["state"], shown["attempt"]) == ("queued", 0), "handing back does not count as a lost attempt"
    fault.rig.start_worker()
    fault.client.wait(job, "succeeded")
    fault.client.wait(waiting, "succeeded")
    assert steps(fault, job) == list(range(1, 101)), "no step is lost or made twice"
    for one in (job, waiting):
        fault.check(one)


def trained_in(events: list[dict[str, Any]], attempt: int) -> bool:
    """Whether this attempt has made a step; what the one before has made may be told after the claim."""
    starts = [one["seq"] for one in events if one["type"] == "process" and one["data"]["state"] == "started"]
    return len(starts) == attempt and any(one["type"] == "metrics" and one["seq"] > starts[-1] for one in events)


@pytest.mark.parametrize("settings", [{"max_attempts": 2}])
def test_a_lost_job_is_given_up_with_its_stage_and_advice(fault: Fault) -> None:
    # No checkpoint on the way: none of its workers gets further than the one before.
    teacher_rl = {**OPTIONS["stages"]["teacher_rl"], "steps": 400, "save_every": 400}
    job = fault.job(stages={**OPTIONS["stages"], "teacher_rl": teacher_rl})
    for attempt in (1, 2):
        worker = fault.rig.start_worker()
        # Until this attempt has begun, the job shows the step that the one before it had come to.
        until("a step of this attempt", lambda attempt=attempt: trained_in(fault.client.events(job), attempt))
        kill(worker)
    fault.rig.start_worker()
    error = fault.client.wait(job, "failed")["error"]
    assert (error["code"], error["stage"]) == ("lost_worker", "teacher_rl")
    assert "lost 2 times without getting further" in error["message"]
    assert error["step"] >= 1
    assert "resume" in error["advice"]
    fault.client.ask(job, "resume")
    fault.client.wait(job, "succeeded")
    fault.check(job)
