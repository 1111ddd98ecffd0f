"""The second task family against direct GRPO: `python -m benchmarks.second_family --seeds 3`.

Each seed pre-trains its own pair that walks through graphs, draws its own problems and runs one job on one thread, one
seed after another. Beside the arms it looks at where RL can begin: what the base student's rollouts are made of and
which of them are right, here and in the demo's arithmetic. Writes second-family.json and .md.

The settings are the demo's, which were chosen for arithmetic, with fewer steps; nothing was tuned for either side. Seed
0 is the one that tests/e2e/test_second_family.py runs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from benchmarks.claims import CLAIMS, judge
from benchmarks.paper_table import of_report, run_job
from s2d.demo import graphs, task
from s2d.demo import settings as demo
from s2d.plan.document import Plan, Sampling
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.report.document import Report
from s2d.rollouts.transformers_engine import TransformersEngine
from s2d.runner.child import stage_command
from s2d.runner.local import summary_of
from s2d.stages.models import load_model, load_tokenizer
from s2d.verifiers.base import VerifierSpec
from s2d.verifiers.extract import final_answer
from s2d.verifiers.pool import GradingPool

LABELS: Final = {"teacher_rl": 512, "student_rl": 512, "validation": 128, "test": 400}
PROMPTS: Final = 2048
STAGES: Final[dict[str, dict[str, Any]]] = {
    "teacher_rl": demo.TEACHER_RL,
    "teacher_rollouts": {**demo.TEACHER_ROLLOUTS, "prompts": PROMPTS},
    "warmup": {**demo.WARMUP, "max_steps": 60},
    "opd": {**demo.OPD, "steps": 30},
    "student_rl": {**demo.STUDENT_RL, "steps": 20},
    "direct_grpo": {**demo.DIRECT_GRPO, "steps": 60},
    "evaluate": demo.EVALUATE,
}
#: The plan request's fields beside models, file and seed.
OPTIONS: Final[dict[str, Any]] = {
    "verifier": "path",
    "labels": LABELS,
    "bridge_prompts": PROMPTS,
    "max_prompt_tokens": 64,
    "max_completion_tokens": 14,
    "controls": ["direct_grpo", "raw_teacher_bridge"],
    "on_gate_failure": "continue",
    "hardware": {"device": "cpu", "cpu_threads": 1},
    "stages": STAGES,
}
#: Problems whose rollouts are looked at, a group of GRPO each.
LOOKED_AT, GROUP = 500, demo.GRPO["group_size"]
#: As many steps as the workflow's RL stages have in all, which is what the planner gives direct GRPO by itself.
EQUAL: Final[int] = STAGES["teacher_rl"]["steps"] + STAGES["student_rl"]["steps"]
#: Steps of direct GRPO that are told.
TOLD = (1, 10, 20, 30, EQUAL, 50, 60)
#: The one style in which a problem can be worked out, in each family.
CAREFUL_WALK, CAREFUL_WORKING = f"a walk of {graphs.ROUTE} steps", "every result written"
ARMS = (
    "base_teacher",
    "rl_teacher",
    "base_student",
    "warmup_student",
    "opd_student",
    "rl_student",
    "direct_grpo",
    "raw_teacher_bridge",
)


def main() -> None:
    arguments = _arguments()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="s2d-second-family-") as temporary:
        folder = arguments.work or Path(temporary)
        seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        table = tabulate([run_seed(seed, folder / f"seed-{seed}", began) for seed in seeds])
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "second-family.json").write_text(json.dumps(table, indent=1) + "\n")
    (arguments.out / "second-family.md").write_text(to_markdown(table))
    print(f"{arguments.out / 'second-family.md'} ({time.monotonic() - began:.0f} s)", flush=True)


def run_seed(
    seed: int, folder: Path, began: float, command: Callable[[int], list[str]] = stage_command
) -> dict[str, Any]:
    """Base pair, problems and job of one seed; goes on where an earlier run of the same folder ended.

    Raises:
        RuntimeError: the job failed; the message is its own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pretrain(seed, folder)
    plan, upload = plan_seed(seed, folder)

    report = run_job(plan, upload, folder / "job", seed, began, command)
    students = {"base_student": folder / "models/student", "direct_grpo": folder / "job/models/direct_grpo"}
    # Beside the job's own problems, whose seed is the seed itself.
    fresh = graphs.problems(LOOKED_AT, seed + 1000)
    looked = {
        name: look(path, fresh, "path", style_of_walk, plan.max_completion_tokens) for name, path in students.items()
    }
    return {"seed": seed, "plan": plan.id, **of_report(report), **_more(report), "rollouts": looked}


def pretrain(seed: int, folder: Path) -> None:
    """The seed's own base models under `folder/models`, once."""
    done = folder / "pretrained"
    if not done.exists():
        command = [sys.executable, "-m", "s2d.demo.graphs_pretrain", "--out", str(folder / "models")]
        with (folder / "pretrain.log").open("w") as log:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            subprocess.run([*command, "--seed", str(seed)], check=True, stdout=log, env=environment)
        done.touch()


def plan_seed(seed: int, folder: Path) -> tuple[Plan, Path]:
    """The plan for the seed's own problems, and their file."""
    upload, models = folder / "walks.jsonl", folder / "models"
    graphs.write_jsonl(upload, sum(LABELS.values()), PROMPTS, seed)
    data = summary_of(upload)
    pair = {name: str(models / name) for name in ("teacher", "student")}
    request = read_request({**OPTIONS, **pair, "training_file": data.file_id, "seed": seed})
    return make_plan(request, data, detect(), ModelPolicy(roots=(models,))), upload


def look(
    model: Path, problems: Sequence[task.Problem], verifier: str, style_of: Callable[[str], str], max_tokens: int
) -> dict[str, Any]:
    """What RL would have to work with: one group of rollouts a problem.

    Returns `pass_at_1`, `pass_at_group`, `groups_with_signal` (some right, some wrong), and for each style its share
    of the rollouts and how many of those are right.
    """
    tokenizer = load_tokenizer(str(model))
    chats = [[{"role": "user", "content": problem.text}] for problem in problems]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    engine = TransformersEngine(load_model(str(model), dtype="float32", device="cpu").eval(), tokenizer, 1024)
    drawn = engine.generate(prompts, samples=GROUP, sampling=Sampling(), max_tokens=max_tokens, seed=0)
    texts = tokenizer.batch_decode([one.ids for group in drawn for one in group], skip_special_tokens=True)
    answers = [problem.answer for problem in problems for _ in range(GROUP)]
    with GradingPool(VerifierSpec.model_validate({"name": verifier})) as pool:
        rewards = [grade.reward for grade in pool.grade(list(zip(texts, answers, strict=True)))]
    groups = [rewards[i : i + GROUP] for i in range(0, len(rewards), GROUP)]
    by_style: dict[str, list[float]] = {}
    for text, reward in zip(texts, rewards, strict=True):
        by_style.setdefault(style_of(text), []).append(reward)
    return {
        "pass_at_1": fmean(rewards),
        "pass_at_group": fmean(max(group) for group in groups),
        "groups_with_signal": fmean(min(group) < max(group) for group in groups),
        "styles": {
            name: {"share": len(of_style) / len(rewards), "right": fmean(of_style)}
            for name, of_style in sorted(by_style.items())
        },
    }


def style_of_walk(completion: str) -> str:
    """Every right walk has `ROUTE` steps: a graph's other edges begin where no route leads."""
    steps = len(final_answer(completion) or "") - 1
    return {1: "start and goal alone", graphs.ROUTE: CAREFUL_WALK}.get(steps, "anything else")


def style_of_working(completion: str) -> str:
    """How many of the results a completion of the demo's arithmetic has written before its answer."""
    found = re.fullmatch(r"((?:;\d)*)\\boxed\{\d\}", completion)
    written = found[1].count(";") if found else -1
    names = {0: "the answer alone", 2: "every other result written", task.N_OPERATIONS: CAREFUL_WORKING}
    return names.get(written, "anything else")


def _more(report: Report) -> dict[str, Any]:
    """What `of_report` leaves out: pass@k, and how direct GRPO went."""
    curves = report.curves["direct_grpo"]
    return {
        "pass_at_k": {arm.model: {str(one.k): one.mean for one in arm.pass_at_k} for arm in report.arms},
        "direct_grpo_curves": {name: dict(curves[name]) for name in ("reward_mean", "groups_without_signal")},
    }


def tabulate(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The document that second-family.json holds."""
    means = [{name: arm["avg_at_k"] for name, arm in run["arms"].items()} for run in runs]
    stored = look(
        demo.ASSETS / "student", task.problems(LOOKED_AT, 1000), "math", style_of_working, demo.MAX_COMPLETION_TOKENS
    )
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "command": f"python -m benchmarks.second_family --first-seed {runs[0]['seed']} --seeds {len(runs)}",
        "seeds": [run["seed"] for run in runs],
        "arms": {name: _arm(runs, name) for name in ARMS},
        "claims": [judge(claim, means).model_dump() for claim in CLAIMS if set(claim.arms) <= set(ARMS)],
        "arithmetic_base_student": stored,
        "settings": OPTIONS,
        "runs": list(runs),
    }


def _arm(runs: Sequence[dict[str, Any]], name: str) -> dict[str, Any]:
    each = [run["arms"][name] for run in runs]
    same = {key: fmean(arm[key] for arm in each) for key in ("labels_used", "updates", "flops")}
    return {"label": each[0]["label"], "by_seed": [arm["avg_at_k"] for arm in each], **same}


def to_markdown(table: dict[str, Any]) -> str:
    seeds = table["seeds"]
    return "\n\n".join(
        [
            "# The second family against direct GRPO",
            f"`{table['command']}`, {table['made_at'][:10]}, {table['machine']}. {len(seeds)} seeds ({seeds[0]} to "
            f"{seeds[-1]}), each with its own base pair, labels, prompts and sampling, one thread each; avg@4 on "
            f"{LABELS['test']} test problems a seed, read once. Another machine's arithmetic ends at other figures.",
            "## Arms",
            _arms(table),
            "## Why",
            _why(table),
            "## The headline's claims, on this family",
            _claims(table["claims"]),
            "## Where RL can begin",
            f"{LOOKED_AT} fresh problems, a group of {GROUP} rollouts each. Arithmetic: the student in "
            "`s2d/demo/assets`, made as those of the [paper's table](paper-table.md).",
            _groups(table),
            _styles(table),
            "## How direct GRPO went",
            _curves(table["runs"]),
            "## How far the bridge came",
            _bridges(table["runs"]),
            "## Settings",
            f"Labels: {LABELS}; {PROMPTS:,} prompts of the bridge. Steps: "
            + ", ".join(f"{name} {given['steps']}" for name, given in STAGES.items() if "steps" in given)
            + ". All settings, gates and each seed's figures are in second-family.json.\n",
        ]
    )


def _arms(table: dict[str, Any]) -> str:
    rows = [
        [
            arm["label"],
            f"{100 * fmean(arm['by_seed']):.1f}",
            f"{100 * min(arm['by_seed']):.1f} – {100 * max(arm['by_seed']):.1f}",
            *(f"{100 * one:.1f}" for one in arm["by_seed"]),
            f"{arm['labels_used']:,.0f}",
            f"{arm['updates']:,.0f}",
            f"{arm['flops'] / 1e12:.2f}",
        ]
        for arm in table["arms"].values()
    ]
    seeds = [f"seed {seed}" for seed in table["seeds"]]
    return _table(["model", "avg@4, %", "range", *seeds, "labels", "student updates", "TFLOP"], rows)


def _claims(claims: Sequence[dict[str, Any]]) -> str:
    rows = [
        [
            claim["text"],
            f"**{claim['verdict']}**",
            f"{100 * claim['difference']['mean']:+.1f}",
            f"{100 * min(claim['by_seed']):+.1f} … {100 * max(claim['by_seed']):+.1f}",
        ]
        for claim in claims
    ]
    return _table(["claim", "verdict (95 % t interval over seeds)", "points", "smallest and largest"], rows)


def _why(table: dict[str, Any]) -> str:
    sums = table["arithmetic_base_student"]["styles"]
    return "\n".join(
        [
            f"- **RL on the student goes as far as its own rollouts lead.** {_each(table, _lead)}",
            f"- **What is rewarded matters as much as how often.** In a walk nothing but the skill is right: "
            f"{CAREFUL_WALK}, each along an edge. In arithmetic more groups have a signal, but {CAREFUL_WORKING} is "
            f"right in {_percent(sums[CAREFUL_WORKING]['right'])} of the base student's tries, and the answer alone in "
            f"{_percent(sums['the answer alone']['right'])}: there RL is drawn to guessing.",
            f"- **The bridge ends about where its teacher stands, or below.** {_each(table, _bridged)}",
            f"- **Direct GRPO has more steps here**: {STAGES['direct_grpo']['steps']}; the workflow's RL stages have "
            f"{EQUAL} in all. Its training reward after {EQUAL} steps: {_each(table, _at_equal)}",
        ]
    )


def _each(table: dict[str, Any], tell: Callable[[dict[str, Any]], str]) -> str:
    return "; ".join(f"seed {run['seed']}: {tell(run)}" for run in table["runs"]) + "."


def _lead(run: dict[str, Any]) -> str:
    signal = _percent(run["rollouts"]["base_student"]["groups_with_signal"])
    direct, whole = (_percent(run["arms"][name]["avg_at_k"]) for name in ("direct_grpo", "rl_student"))
    return (
        f"{signal} of the groups hold a right and a wrong rollout, and direct GRPO ends at {direct}, workflow {whole}"
    )


def _bridged(run: dict[str, Any]) -> str:
    teacher, student = (_percent(run["arms"][name]["avg_at_k"]) for name in ("rl_teacher", "opd_student"))
    return f"teacher {teacher}, student after OPD {student}"


def _at_equal(run: dict[str, Any]) -> str:
    return _percent(_at(run["direct_grpo_curves"]["reward_mean"], EQUAL))


def _groups(table: dict[str, Any]) -> str:
    names = ("pass_at_1", "pass_at_group", "groups_with_signal")
    looked = {
        **{f"walks, base student of seed {run['seed']}": run["rollouts"]["base_student"] for run in table["runs"]},
        "arithmetic, base student": table["arithmetic_base_student"],
    }
    rows = [[who, *(_percent(one[name]) for name in names)] for who, one in looked.items()]
    return _table(["student", "pass@1", f"pass@{GROUP}", "groups with some right, some wrong"], rows)


def _styles(table: dict[str, Any]) -> str:
    looked = {f"walks, seed {run['seed']}": run["rollouts"]["base_student"] for run in table["runs"]}
    rows = [
        [who, style, _percent(found["share"]), _percent(found["right"])]
        for who, one in {**looked, "arithmetic": table["arithmetic_base_student"]}.items()
        for style, found in one["styles"].items()
    ]
    return _table(["base student", "what it writes", "of its rollouts", "of these right"], rows)


def _curves(runs: Sequence[dict[str, Any]]) -> str:
    rows = [
        [f"seed {run['seed']}, {name}", *(_percent(_at(run["direct_grpo_curves"][key], step)) for step in TOLD)]
        for run in runs
        for name, key in (("mean reward", "reward_mean"), ("groups without signal", "groups_without_signal"))
    ]
    return _table(["step", *map(str, TOLD)], rows)


def _at(curve: dict[Any, float], step: int) -> float:
    """From a report's curve, or from one that was stored as JSON."""
    return curve[step] if step in curve else curve[str(step)]


def _bridges(runs: Sequence[dict[str, Any]]) -> str:
    """C2 before the warmup and after it, and what the student then has of its teacher's accuracy."""
    rows = []
    for run in runs:
        measured = next(one for one in run["gates"] if (one["arm"], one["gate"]) == ("workflow", "c2"))["measured"]
        accuracy = [run["arms"][name]["avg_at_k"] for name in ("rl_teacher", "opd_student")]
        kl = [f"{one['reverse_kl']:.3f}" for one in (measured["before"], measured)]
        rows.append([str(run["seed"]), *kl, str(measured["step"]), *map(_percent, accuracy)])
    head = ["seed", "KL(student ‖ teacher) before", "after the warmup, nats/token", "its steps"]
    return _table([*head, "RL'd teacher", "student after OPD"], rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The second family against direct GRPO.")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"), help="folder of the results")
    parser.add_argument("--work", type=Path, help="keep models and jobs here, and go on with what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
