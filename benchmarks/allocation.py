"""Which share of the labels should the teacher get? `python -m benchmarks.allocation --seeds 2`.

The demo's task with few labels; each share is a job of its own on base models of the seed's own, all with the same
validation and test problems. Learning rates and the bridge are the demo's; how many steps a GRPO stage makes of its
labels is the planner's rule (docs/plan.md), as a user gets it. What the planner would choose is one of the shares.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.claims import interval
from benchmarks.output import publish
from benchmarks.paper_table import of_report, pretrain, run_job
from s2d.demo import settings
from s2d.demo.task import write_jsonl
from s2d.plan.allocation import TEACHER_PERCENT
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.runner.local import summary_of

#: Labels that train, of one seed; percent of them that go to the teacher. 0: all to the student, as direct GRPO.
LABELS = 512
SHARES = (0, 35, 50, TEACHER_PERCENT, 80, 100)
#: Seeds that neither chose settings nor made the paper's table.
FIRST_SEED = 40
#: What the planner decides here, and the demo otherwise does.
PLANNED = ("steps", "prompts_per_step", "per_device_batch_size", "warmup_steps")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, help="keep models and jobs here, and go on with what is there")
    parser.add_argument("--out", type=Path, default=RESULTS / "allocation")
    arguments = parser.parse_args()
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="s2d-allocation-"))
    began = time.monotonic()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    with ThreadPoolExecutor(max_workers=min(len(seeds), os.cpu_count() or 1)) as pool:
        runs = list(pool.map(lambda seed: run_seed(seed, folder / f"seed-{seed}", began), seeds))
    document = tabulate(runs)
    publish(document, to_markdown(document), arguments.out)


def run_seed(seed: int, folder: Path, began: float) -> dict[str, Any]:
    """Every share of one seed; {share: what its job's report says}."""
    folder.mkdir(parents=True, exist_ok=True)
    pretrain(seed, folder)
    upload = folder / "problems.jsonl"
    kept = {name: settings.LABELS[name] for name in ("validation", "test")}
    write_jsonl(upload, LABELS + sum(kept.values()), settings.UNLABELED_PROMPTS, seed)
    return {"seed": seed, **{str(share): _job(share, seed, folder, upload, kept, began) for share in SHARES if share}}


def _job(share: int, seed: int, folder: Path, upload: Path, kept: dict[str, int], began: float) -> dict[str, Any]:
    teacher = round(LABELS * share / 100)
    student = LABELS - teacher
    stages: dict[str, Any] = {**settings.OPTIONS["stages"]}
    # All labels to the student is a control arm, and the same one whatever the share: it is run beside one of them.
    direct = share == 100
    for name, runs in (("teacher_rl", True), ("student_rl", bool(student)), ("direct_grpo", direct)):
        known = stages.pop(name)
        if runs:
            stages[name] = {key: value for key, value in known.items() if key not in PLANNED}
    fields = {
        **settings.OPTIONS,
        "labels": {**kept, "teacher_rl": teacher, "student_rl": student},
        "student_rl": bool(student),
        "controls": ["direct_grpo"] if direct else [],
        "stages": stages,
        "hardware": {"device": "cpu", "cpu_threads": 1},
        "on_gate_failure": "continue",
        "teacher": str(folder / "models" / "teacher"),
        "student": str(folder / "models" / "student"),
        "seed": seed,
    }
    data = summary_of(upload)
    request = read_request({**fields, "training_file": data.file_id})
    plan = make_plan(request, data, detect(), ModelPolicy(roots=(folder,)))
    found = of_report(run_job(plan, upload, folder / f"job-{share}", seed, began))
    return {"plan": plan.id, "student": plan.product, "arms": found["arms"], "gates": found["gates"]}


def accuracy(run: dict[str, Any], share: int) -> float:
    """avg@k of the student that this share ends with."""
    job = run[str(share or 100)]
    return float(job["arms"][job["student"] if share else "direct_grpo"]["avg_at_k"])


def tabulate(runs: list[dict[str, Any]]) -> dict[str, Any]:
    means = {share: [accuracy(run, share) for run in runs] for share in SHARES}
    best = max(SHARES, key=lambda share: sum(means[share]))
    behind = [100 * (a - b) for a, b in zip(means[best], means[TEACHER_PERCENT], strict=True)]
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "labels": LABELS,
        "seeds": [run["seed"] for run in runs],
        "accuracy": {str(share): values for share, values in means.items()},
        "teacher": {str(s): [run[str(s)]["arms"]["rl_teacher"]["avg_at_k"] for run in runs] for s in SHARES if s},
        "planner": TEACHER_PERCENT,
        "best": best,
        "planner_behind_best_points": sum(behind) / len(behind),
        "runs": runs,
    }


def to_markdown(document: dict[str, Any]) -> str:
    seeds = len(document["seeds"])
    lines = [
        "# Which share of the labels should the teacher get?",
        "",
        f"`python -m benchmarks.allocation --seeds {seeds}`, {document['made_at'][:10]}: {document['labels']} labels "
        f"that train, {seeds} seeds with base models of their own; avg@4 on 1,000 test problems, 95 % t intervals over "
        "seeds.",
        "",
        "| percent to the teacher | RL'd teacher, % | student at the end, % |",
        "| ---: | ---: | ---: |",
    ]
    for share in SHARES:
        teacher = "" if not share else _percent(document["teacher"][str(share)])
        name = {0: "0 (direct GRPO)", document["planner"]: f"**{share} (the planner's)**"}.get(share, str(share))
        lines.append(f"| {name} | {teacher} | {_percent(document['accuracy'][str(share)])} |")
    lines += [
        "",
        f"Best here: {document['best']} %. The planner's share is {document['planner_behind_best_points']:.1f} points "
        "behind it.",
    ]
    return "\n".join([*lines, ""])


def _percent(values: list[float]) -> str:
    found = interval(values)
    if found.low is None or found.high is None:
        return f"{100 * found.mean:.1f}"
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


if __name__ == "__main__":
    main()
