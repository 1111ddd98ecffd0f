"""Many small jobs while parts of the service are killed at random: `make soak`, or `python -m benchmarks.soak`.

Several workers run drills (`s2d.stages.drill`: all of a stage but the training) of a few plans. Meanwhile workers,
trainers, Redis and the API are killed, frozen, told to stop and started again, checkpoints are damaged, and jobs are
paused, cancelled and resumed, in an order that follows from a printed seed (the moments depend on the machine). Then
every job is looked at: is it where it was asked to be, did two trainers ever live at once, is each event there, once
and in order, is the ledger that of an undisturbed job, has it seen the same batches as every other job of its plan? And
the machine: is a process or a temporary file left?

Exit status 1 when anything is wrong. Writes soak.json and soak.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos import Chaos
from benchmarks.invariants import Event, violations
from benchmarks.rig import FINAL, Client, Rig, stop, until
from s2d.demo.task import write_jsonl
from s2d.runner.exclusive import holder
from s2d.runner.layout import JobLayout
from s2d.services.context import open_context
from s2d.stages.drill import MODEL
from worker.janitor import Janitor

LABELS = {"teacher_rl": 32, "student_rl": 16, "validation": 8, "test": 8}
PLANS = 5
STAGES = {
    "teacher_rl": {"steps": 60, "prompts_per_step": 4, "group_size": 4, "save_every": 10},
    "warmup": {"steps": 20, "max_steps": 20, "sequences_per_step": 16, "save_every": 5},
    "opd": {"steps": 20, "sequences_per_step": 16, "save_every": 5},
    "student_rl": {"steps": 20, "prompts_per_step": 4, "group_size": 4, "save_every": 5},
    "evaluate": {"k": 2},
}
OPTIONS: dict[str, Any] = {
    "labels": LABELS, "stages": STAGES, "max_prompt_tokens": 64, "max_completion_tokens": 24,
    "gates": {"c2": {"prompts": 8}}, "hardware": {"device": "cpu", "cpu_threads": 1},
}  # fmt: skip


def main() -> int:
    given = _arguments()
    seed = given.seed if given.seed is not None else time.time_ns() % 10**6
    print(f"seed {seed}", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s2d-soak-") as name:
        folder = Path(name)
        # Of this process and all that it starts: what is left there afterwards was forgotten by somebody.
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = tempfile.tempdir = str(folder / "tmp")
        found = soak(folder, seed, given.jobs, given.workers, given.database)
    tempfile.tempdir = None
    document = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        **found,
    }
    write(document, given.out)
    print(to_markdown(document), flush=True)
    return 1 if document["wrong"] else 0


def soak(folder: Path, seed: int, count: int, workers: int, database: str | None) -> dict[str, Any]:
    rng = random.Random(seed)
    drill = (sys.executable, "-m", "s2d.stages.drill")
    # Attempts are not what this is about: a job that is harmed often enough fails, as it says it does.
    settings = {"stage_command": drill, "max_attempts": 1000, "backoff_s": 0.2, "grace_s": 10.0, "worker_slots": 2}
    with Rig(folder, database_url=database, **settings) as rig:
        for _ in range(workers):
            rig.start_worker()
        jobs = create(rig.client, folder, count)
        chaos = Chaos(rig, rng, jobs)
        harm(chaos, rig)
        print(f"{sum(chaos.done.values())} faults, waiting for the rest", flush=True)
        settle(rig.client, jobs)
        found = judge(rig, chaos)
        for worker in rig.workers:
            stop(worker)
        # A worker may be told to stop while its janitor is at work; the next one's does the rest.
        ctx = open_context(rig.settings)
        Janitor(lambda: ctx).turn()
        ctx.db.close()
        found["wrong"] += leftovers(rig)
    found["wrong"] += [f"{path} is left" for path in (folder / "tmp").iterdir()]
    return {"jobs": count, "workers": workers, "database": "PostgreSQL" if database else "SQLite", **found}


def create(client: Client, folder: Path, count: int) -> list[str]:
    """So many jobs of a few plans, all at once."""
    upload = folder / "problems.jsonl"
    write_jsonl(upload, sum(LABELS.values()), 64, 3)
    file_id = client.upload(upload)
    plans = [client.plan(file_id, seed=number, **OPTIONS) for number in range(PLANS)]
    return [client.start(plans[number % PLANS], file_id) for number in range(count)]


def harm(chaos: Chaos, rig: Rig) -> None:
    """Until nine jobs in ten have ended."""
    client, jobs = rig.client, chaos.jobs
    while True:
        ended = sum(state_of(client, job) in FINAL for job in jobs)
        if ended >= 0.9 * len(jobs):
            return
        name = chaos.strike()
        if name is not None:
            print(f"{ended:4d} of {len(jobs)} ended  {name}", flush=True)
        chaos.rest()


def state_of(client: Client, job: str) -> str:
    return str(client.job(job)["state"])


def settle(client: Client, jobs: list[str]) -> None:
    """Wait for all; who has failed is resumed, as a user would."""
    for job in jobs:
        until(f"{job} ends", lambda job=job: state_of(client, job) in FINAL)  # type: ignore[misc]
        for _ in range(3):
            if state_of(client, job) != "failed":
                break
            client.ask(job, "resume")
            until(f"{job} ends", lambda job=job: state_of(client, job) in FINAL)  # type: ignore[misc]


def judge(rig: Rig, chaos: Chaos) -> dict[str, Any]:
    client, wrong = rig.client, []
    digests: dict[str, set[str]] = defaultdict(set)
    counts: Counter[str] = Counter()
    recoveries: list[float] = []
    for job in chaos.jobs:
        layout = JobLayout(rig.settings.job_dir(job))
        # The state of a job whose worker was lost shows before its last process has been found and its end told.
        until(f"{job} is tidied", lambda layout=layout: holder(layout) is None)  # type: ignore[misc]
        shown, events = client.job(job), client.events(job)
        wanted = "cancelled" if job in chaos.given_up else "succeeded"
        # A job that had succeeded when it was given up has succeeded.
        if shown["state"] not in {wanted, "succeeded"}:
            wrong.append(f"{job} is {shown['state']}, not {wanted}: {shown['error']}")
        stages = [stage["id"] for stage in shown["stages"]]
        wrong += [f"{job}: {one}" for one in violations(events, layout, stages)]
        counts += Counter({"events": len(events), "claims": claims(events), "processes": started(events)})
        counts["failed and resumed"] += sum(one["data"].get("state") == "failed" for one in events)
        recoveries += recovered(events, [when for lost, when in chaos.losses if lost == job])
        if shown["state"] == "succeeded":
            digests[shown["plan"]].add((layout.model("rl_student") / MODEL).read_text())
            wrong += [f"{job}: {one}" for one in spending(client, job, layout)]
    wrong += [f"{len(found)} different students of plan {plan}" for plan, found in digests.items() if len(found) > 1]
    return {
        "faults": dict(sorted(chaos.done.items())),
        "succeeded": sum(state_of(client, job) == "succeeded" for job in chaos.jobs),
        "cancelled": sum(state_of(client, job) == "cancelled" for job in chaos.jobs),
        **counts,
        "recovery_s": percentiles(recoveries),
        "lease_s": rig.settings.lease_s,
        "wrong": wrong,
    }


def claims(events: list[Event]) -> int:
    return sum(one["type"] == "state" and one["data"]["state"] == "running" for one in events)


def started(events: list[Event]) -> int:
    return sum(one["type"] == "process" and one["data"]["state"] == "started" for one in events)


def recovered(events: list[Event], losses: list[float]) -> list[float]:
    """Seconds from each loss of a process to the next one's start, where there was a next one."""
    starts = [one["created_at"] for one in events if one["type"] == "process" and one["data"]["state"] == "started"]
    return [min(later) - lost for lost in losses if (later := [at for at in starts if at > lost])]


def spending(client: Client, job: str, layout: JobLayout) -> list[str]:
    """The ledger in the database, the one in the folder and the plan agree, and no label is there twice."""
    spent = client.http.get(f"/jobs/{job}/labels").json()["data"]
    in_database = {one["role"]: one["labels"] for one in spent}
    lines = [json.loads(line) for line in layout.ledger.read_text().splitlines()]
    twice = len(lines) - len({(line["arm"], line["label"]) for line in lines})
    wrong = [f"{twice} labels are in the ledger twice"] if twice else []
    if in_database != LABELS or Counter(line["role"] for line in lines) != Counter(LABELS):
        wrong.append(f"the plan has {LABELS}, the database {in_database}")
    return wrong


def leftovers(rig: Rig) -> list[str]:
    """After the workers were told to stop: no stage process, no file that was being written."""
    files = [path for pattern in (".*.tmp", ".trash-*") for path in rig.settings.state_dir.rglob(pattern)]
    return [f"{one} still runs" for one in rig.stages()] + [f"{path} is left" for path in files]


def percentiles(values: list[float]) -> dict[str, float]:
    if len(values) < 2:
        return {}
    cuts = statistics.quantiles(values, n=20, method="inclusive")
    return {"p50": round(cuts[9], 2), "p95": round(cuts[18], 2), "count": len(values)}


def to_markdown(found: dict[str, Any]) -> str:
    faults = "\n".join(f"| {name} | {count} |" for name, count in found["faults"].items())
    recovery = found["recovery_s"]
    told = f"{recovery['p50']} s (p50), {recovery['p95']} s (p95)" if recovery else "not measured"
    wrong = "\n".join(f"- {one}" for one in found["wrong"]) or "Nothing."
    return f"""# Soak

`make soak`, {found["made_at"][:10]}, {found["machine"]}, {found["database"]}, seed {found["seed"]}:
{found["jobs"]} jobs on {found["workers"]} workers in {found["seconds"] / 60:.1f} minutes,
{sum(found["faults"].values())} faults.

| | |
| --- | --- |
| jobs that succeeded, were cancelled for good | {found["succeeded"]}, {found["cancelled"]} |
| jobs lost | {found["jobs"] - found["succeeded"] - found["cancelled"]} |
| labels spent twice, two trainers at once, events doubled or missing, anything left over | {len(found["wrong"])} |
| jobs that failed under the faults and were resumed | {found["failed and resumed"]} |
| claims, stage processes, events | {found["claims"]:,}, {found["processes"]:,}, {found["events"]:,} |
| from the loss of a process to the next one's start | {told} |

The lease is {found["lease_s"]:g} s; the time to the next start includes waiting for a free worker.

| fault | times |
| --- | --- |
{faults}

## What was wrong
{wrong}
"""


def write(document: dict[str, Any], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "soak.json").write_text(json.dumps(document, indent=1) + "\n")
    (out / "soak.md").write_text(to_markdown(document))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Many small jobs under random faults.")
    parser.add_argument("--jobs", type=int, default=100)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, help="of the faults; else from the clock")
    parser.add_argument("--database", help="a database URL; else SQLite")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except httpx.HTTPError as err:
        sys.exit(f"the service did not answer: {err}")
