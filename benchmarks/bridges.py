"""Many bridges from one reward-shaped teacher: what comes before them is run once a seed, as a job is.

A bridge is the stages `warmup` and `opd` as they stand, run in this process from a plan of their own, in a folder that
links to the shared labels, rollouts and teacher. Nothing of the stages is replaced.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from s2d.demo import settings
from s2d.demo.task import write_jsonl
from s2d.evaluate.score import score
from s2d.events import NewEvent
from s2d.plan.document import Plan, Sampling
from s2d.plan.flops import Compute
from s2d.plan.hardware import detect
from s2d.plan.models import ModelPolicy
from s2d.plan.request import read_request
from s2d.plan.service import make_plan
from s2d.rollouts.prompts import load_prompts
from s2d.rollouts.transformers_engine import TransformersEngine
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan, summary_of
from s2d.runner.task import StageResult, StageTask, this_process
from s2d.stages import opd, warmup
from s2d.stages.models import load_model, load_tokenizer
from s2d.stages.runtime import StageRuntime
from s2d.verifiers.pool import GradingPool

#: Validation problems whose prompts the bridge may measure KL on, and those that only judge.
GATE_PROMPTS, JUDGED = 32, 1000
K = 4
LABELS = {"teacher_rl": 512, "student_rl": 0, "validation": GATE_PROMPTS + JUDGED, "test": 1}
#: The policy's own distribution.
SAMPLING = Sampling()


@dataclass(frozen=True)
class Shared:
    """One seed's job up to the teacher rollouts."""

    seed: int
    pair: Path
    upload: Path
    layout: JobLayout


def prepare(seed: int, pair: Path, folder: Path) -> Shared:
    """Run teacher RL and the teacher rollouts; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    upload = folder / "problems.jsonl"
    write_jsonl(upload, sum(LABELS.values()), settings.UNLABELED_PROMPTS, seed)
    shared = Shared(seed, pair, upload, JobLayout(folder / "shared"))
    done: list[str] = []

    def note(event: NewEvent) -> None:
        if event.type == "stage" and event.data["state"] == "succeeded":
            done.append(event.stage or "")

    outcome = run_plan(
        plan_for(shared, {}), upload, shared.layout.root, note, stopping=lambda: "teacher_rollouts" in done
    )
    if outcome.state == "failed":
        raise SystemExit(f"seed {seed}: {outcome.error}")
    return shared


def plan_for(shared: Shared, stages: dict[str, Any], c2: dict[str, Any] | None = None) -> Plan:
    """The demo's plan with these settings of warmup and OPD over the demo's own."""
    data = summary_of(shared.upload)
    known = {name: settings.OPTIONS["stages"][name] for name in ("teacher_rl", "teacher_rollouts", "warmup", "opd")}
    fields = {
        **settings.OPTIONS,
        "teacher": str(shared.pair / "teacher"),
        "student": str(shared.pair / "student"),
        "training_file": data.file_id,
        "labels": LABELS,
        "seed": shared.seed,
        "controls": [],
        "hardware": {"device": "cpu", "cpu_threads": 1},
        "gates": {"c2": {"prompts": GATE_PROMPTS, **(c2 or {})}},
        "on_gate_failure": "continue",
        "stages": {name: {**own, **stages.get(name, {})} for name, own in known.items()},
    }
    return make_plan(read_request(fields), data, detect(), ModelPolicy(roots=(shared.pair,)))


@dataclass(frozen=True)
class Bridge:
    """Settings of warmup and OPD over the demo's own.

    `budget`: OPD takes what the warmup leaves of so many FLOPs. `parts`: the warmup reads only so many parts of 512
    stored rollouts.
    """

    warmup: dict[str, Any] = field(default_factory=dict)
    opd: dict[str, Any] = field(default_factory=dict)
    c2: dict[str, Any] = field(default_factory=dict)
    budget: float | None = None
    parts: int | None = None


@dataclass(frozen=True)
class Outcome:
    """What a bridge made and took. FLOPs are those of the stages' results and of C2's measurements."""

    means: list[float]
    flops: float
    seconds: float
    warmup_steps: int
    opd_steps: int
    opd_tokens_per_step: float
    data: dict[str, Any]

    @property
    def accuracy(self) -> float:
        return fmean(self.means)


def run_bridge(shared: Shared, bridge: Bridge, folder: Path, tokens_per_step: float | None = None) -> Outcome:
    """Warmup, OPD, and avg@4 of the student on the judging problems.

    Args:
        folder: emptied first; holds plan, checkpoints and student.
        tokens_per_step: what an OPD step is expected to take; needed with a budget.
    """
    layout = _folder(shared, folder, bridge.parts)
    plan = plan_for(shared, {"warmup": bridge.warmup, "opd": bridge.opd}, bridge.c2)
    first = _stage(layout, plan, "warmup")
    spent = first.flops + _gate_flops(layout, plan)
    if bridge.budget is not None:
        assert tokens_per_step is not None
        compute = Compute(plan.stages, plan.teacher, plan.student)
        reserved = (1 + len(bridge.opd["extrapolate"])) if bridge.opd.get("extrapolate") else 0
        affordable = (bridge.budget - spent) / compute.flops(plan.stage("opd"), tokens_per_step)
        count = max(1, round(affordable - reserved * GATE_PROMPTS / plan.stage("opd").sequences_per_step))
        plan = plan_for(shared, {"warmup": bridge.warmup, "opd": {**bridge.opd, **steps(count)}}, bridge.c2)
    second = _stage(layout, plan, "opd")
    return Outcome(
        means=_judge(shared, plan, layout.model("opd_student")),
        flops=spent + second.flops,
        seconds=first.seconds + second.seconds,
        warmup_steps=first.steps,
        opd_steps=second.steps,
        opd_tokens_per_step=second.tokens / second.steps,
        data={"c2": first.gate.measured if first.gate else None, "extrapolation": second.data.get("extrapolation")},
    )


def steps(count: int) -> dict[str, int]:
    """So many steps, and no checkpoint on the way: writing them is no part of what is compared."""
    return {"steps": count, "save_every": count, "warmup_steps": min(5, count)}


def _folder(shared: Shared, folder: Path, parts: int | None) -> JobLayout:
    """A job's folder in which everything up to the teacher rollouts is done."""
    shutil.rmtree(folder, ignore_errors=True)
    layout = JobLayout(folder)
    layout.model("rl_teacher").parent.mkdir(parents=True)
    for name in ("data", "models/rl_teacher"):
        (folder / name).symlink_to((shared.layout.root / name).absolute())
    drawn = layout.rollouts("teacher_rollouts")
    drawn.mkdir(parents=True)
    for part in sorted(shared.layout.rollouts("teacher_rollouts").glob("part-*.jsonl"))[:parts]:
        (drawn / part.name).symlink_to(part.absolute())
    return layout


def _stage(layout: JobLayout, plan: Plan, name: str) -> StageResult:
    """Run one stage in this process; seconds and FLOPs as a job counts them, without the start of a process."""
    layout.stage(name).mkdir(parents=True)
    layout.plan.write_text(plan.model_dump_json())
    models = {"base_teacher": plan.teacher.name, "base_student": plan.student.name}
    models |= {made: str(layout.model(made)) for made in ("rl_teacher", "warmup_student")}
    task = StageTask(job_dir=layout.root, stage=name, attempt=1, models=models, supervisor=this_process())
    runtime = StageRuntime(task)
    started = time.monotonic()
    result = (warmup if name == "warmup" else opd).run(runtime)
    compute = Compute(plan.stages, plan.teacher, plan.student)
    flops = compute.flops(runtime.stage, result.tokens, result.data.get("teacher_tokens"))
    return result.model_copy(update={"seconds": time.monotonic() - started, "flops": flops})


def _gate_flops(layout: JobLayout, plan: Plan) -> float:
    """FLOPs of every measurement of C2: generation, and both models' forward pass."""
    events = [json.loads(line) for line in (layout.stage("warmup") / "events-001.jsonl").read_text().splitlines()]
    measured = [event["data"]["measured"] for event in events if event["type"] == "gate"]
    measured.append(measured[0]["before"])
    prompt = prompt_tokens(layout, plan)
    tokens = sum(one["tokens"] + one["rollouts"] * prompt for one in measured)
    return float(tokens * (4 * plan.student.parameters + 2 * plan.teacher.parameters))


def prompt_tokens(layout: JobLayout, plan: Plan) -> float:
    """Mean tokens of a validation prompt."""
    tokenizer = load_tokenizer(plan.student.name)
    prompts, _ = load_prompts([layout.data / "validation.jsonl"], tokenizer, plan.max_prompt_tokens)
    return fmean(len(prompt.ids) for prompt in prompts)


def _judge(shared: Shared, plan: Plan, model: Path) -> list[float]:
    """Mean reward of each judging problem."""
    tokenizer = load_tokenizer(str(model))
    problems, _ = load_prompts([shared.layout.data / "validation.jsonl"], tokenizer, plan.max_prompt_tokens)
    engine = TransformersEngine(load_model(str(model), dtype="float32", device="cpu").eval(), tokenizer, 1024)
    with GradingPool(plan.verifier) as pool:
        scores = score(
            engine,
            tokenizer,
            problems[GATE_PROMPTS:],
            pool,
            k=K,
            sampling=SAMPLING,
            max_tokens=plan.max_completion_tokens,
            seed=shared.seed,
            on_batch=lambda _done, _total: None,
        )
    return scores.means
