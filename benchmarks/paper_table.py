"""The paper's table at small scale: `make bench-paper`, or `python -m benchmarks.paper_table --seeds 6`.

Each seed pre-trains its own pair of base models, draws its own problems and runs one s2d job with every control arm,
through the same code as any job. Seeds run side by side, one thread each. The test problems of a seed are read once, by
its job's last stage. Writes paper-table.json, .md and .png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import paper_settings
from benchmarks.claims import CLAIMS, COMPUTE_CLAIMS, Claim, interval, judge
from s2d.demo.settings import LABELS, UNLABELED_PROMPTS
from s2d.demo.task import write_jsonl
from s2d.events import NewEvent
from s2d.plan.document import Plan
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.report.document import Report
from s2d.runner.child import stage_command
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan, summary_of
from s2d.runner.task import StageResult

TRIED = Path(__file__).with_name("paper_tried.json")


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="s2d-paper-"))
    print(f"Models and jobs are in {folder}; --work {folder} goes on there.", flush=True)
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    options = paper_settings.options(tuple(arguments.controls), compute_matched=arguments.compute_matched)
    with ThreadPoolExecutor(max_workers=min(len(seeds), os.cpu_count() or 1)) as pool:
        runs = list(pool.map(lambda seed: run_seed(seed, folder / f"seed-{seed}", options, began), seeds))
    table = tabulate(runs, options, time.monotonic() - began)
    _write(table, arguments.out)
    if arguments.work is None:
        shutil.rmtree(folder)
    print(f"{arguments.out / 'paper-table.md'} ({table['seconds'] / 60:.1f} min)", flush=True)


def run_seed(seed: int, folder: Path, options: dict[str, Any], began: float) -> dict[str, Any]:
    """Base pair, problems, plan and job of one seed; goes on where an earlier run of the same folder ended.

    Raises:
        RuntimeError: the job failed; the message is its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seconds = pretrain(seed, folder)
    plan, upload = plan_seed(seed, folder, options)

    report = run_job(plan, upload, folder / "job", seed, began)
    found = {"seed": seed, "plan": plan.id, "pretrain_seconds": seconds, **of_report(report)}
    return found | {"direct_grpo_rates": rates_tried(plan, JobLayout(folder / "job"))}


def run_job(
    plan: Plan,
    upload: Path,
    folder: Path,
    seed: int,
    began: float,
    command: Callable[[int], list[str]] = stage_command,
) -> Report:
    """The report of the seed's job; says on the way how far it is.

    Raises:
        RuntimeError: the job failed; the message is its own.
    """

    def tell(event: NewEvent) -> None:
        if event.type in ("stage", "gate", "evaluation") or event.level != "info":
            print(f"{time.monotonic() - began:7.0f} s  seed {seed}  {event.message}", flush=True)

    outcome = run_plan(plan, upload, folder, tell, command=command)
    if outcome.state != "succeeded" or outcome.report is None:
        raise RuntimeError(f"seed {seed}: {outcome.error}")
    return Report.model_validate_json(outcome.report.read_text())


def pretrain(seed: int, folder: Path) -> float:
    """The seed's own base models under `folder/models`; the seconds that it took."""
    done = folder / "pretrained.json"
    if not done.exists():
        began = time.monotonic()
        command = [sys.executable, "-m", "s2d.demo.pretrain", "--out", str(folder / "models"), "--seed", str(seed)]
        with (folder / "pretrain.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
        done.write_text(json.dumps(time.monotonic() - began))
    return float(json.loads(done.read_text()))


def plan_seed(seed: int, folder: Path, options: dict[str, Any]) -> tuple[Plan, Path]:
    """The plan for the seed's own problems, and their file."""
    upload, models = folder / "problems.jsonl", folder / "models"
    write_jsonl(upload, sum(LABELS.values()), UNLABELED_PROMPTS, seed)
    data = summary_of(upload)
    pair = {name: str(models / name) for name in ("teacher", "student")}
    request = read_request({**options, **pair, "training_file": data.file_id, "seed": seed})
    return make_plan(request, data, detect(), ModelPolicy(roots=(models,))), upload


def of_report(report: Report) -> dict[str, Any]:
    """What the table keeps of a job's report."""
    kept = ("avg_at_k", "low", "high", "k", "problems", "labels_used", "updates", "flops", "seconds", "truncated")
    return {
        "arms": {arm.model: {"label": arm.label, **{name: getattr(arm, name) for name in kept}} for arm in report.arms},
        "stages": {one.id: {"steps": one.steps, "seconds": one.seconds, "tokens": one.tokens} for one in report.stages},
        "gates": [gate.model_dump() for gate in report.gates],
        "ledger": [entry.model_dump() for entry in report.ledger],
    }


def rates_tried(plan: Plan, layout: JobLayout) -> list[dict[str, Any]]:
    """Direct GRPO's learning rates with their avg@k on validation, and which was kept; none where it was not run."""
    choice = layout.result("direct_grpo_select")
    if not choice.exists():
        return []
    data = StageResult.model_validate_json(choice.read_text()).data
    return [
        {"learning_rate": plan.stage(name).optim.learning_rate, "avg_at_k": mean, "kept": name == data["chosen"]}
        for name, mean in data["avg_at_k"].items()
    ]


def tabulate(runs: Sequence[dict[str, Any]], options: dict[str, Any], seconds: float) -> dict[str, Any]:
    """The document that paper-table.json holds."""
    means = [{name: arm["avg_at_k"] for name, arm in run["arms"].items()} for run in runs]
    arms = {name: _arm(runs, name) for name in runs[0]["arms"]}
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "seconds": round(seconds, 1),
        "seeds": [run["seed"] for run in runs],
        "arms": arms,
        "claims": _judged(CLAIMS, means),
        "claims_at_equal_compute": _judged(COMPUTE_CLAIMS, means),
        "settings": options,
        "settings_tried": json.loads(TRIED.read_text()),
        "runs": list(runs),
    }


def _judged(claims: Sequence[Claim], means: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    return [judge(claim, means).model_dump() for claim in claims if set(claim.arms) <= set(means[0])]


def _arm(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    each = [run["arms"][name] for run in runs]
    whole = {key: sum(arm[key] for arm in each) / len(each) for key in ("updates", "flops", "seconds", "labels_used")}
    accuracy = interval([arm["avg_at_k"] for arm in each])
    return {"label": each[0]["label"], "accuracy": accuracy.model_dump(), **whole}


def _write(table: dict[str, Any], out: Path) -> None:
    from benchmarks.paper_render import draw, to_markdown

    out.mkdir(parents=True, exist_ok=True)
    (out / "paper-table.json").write_text(json.dumps(table, indent=1) + "\n")
    (out / "paper-table.md").write_text(to_markdown(table))
    draw(table, out / "paper-table.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The paper's table at small scale.")
    parser.add_argument("--seeds", type=int, default=paper_settings.SEEDS, help="how many")
    parser.add_argument(
        "--first-seed",
        type=int,
        default=paper_settings.FIRST_SEED,
        help="0 and 1 chose the settings; an earlier table read the tests of 10 to 15",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--work", type=Path, help="keep models and jobs here, and go on with what is there")
    parser.add_argument("--controls", nargs="*", default=paper_settings.CONTROLS, help="only these arms")
    parser.add_argument("--no-compute-matched", dest="compute_matched", action="store_false")
    return parser.parse_args()


if __name__ == "__main__":
    main()
