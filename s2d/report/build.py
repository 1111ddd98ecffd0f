"""Gathers a job's folder into one `Report`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from s2d.data.split import SplitReport
from s2d.evaluate.scores import Scores, load_scores
from s2d.evaluate.statistics import avg_at_k, paired_gain, pass_at_k
from s2d.plan.document import Grpo, Plan, Training, load_plan
from s2d.plan.graph import WORKFLOW, base_of, made_by, trunk
from s2d.report.document import (
    ArmResult,
    Check,
    Comparison,
    Decision,
    Gate,
    PassAtK,
    Provenance,
    Report,
    Spending,
    StageSummary,
)
from s2d.runner.events import event_files, read_events
from s2d.runner.layout import JobLayout
from s2d.runner.ledger import Ledger
from s2d.runner.task import StageResult

LABELS = {
    "base_teacher": "base teacher",
    "rl_teacher": "RL'd teacher",
    "base_student": "base student",
    "warmup_student": "student after warmup (2a)",
    "opd_student": "student after OPD (2b)",
    "rl_student": "student after RL (3)",
    "direct_grpo": "direct GRPO on the student",
    "raw_teacher_bridge": "bridge from the raw teacher",
    "opd_only": "OPD only",
    "warmup_only": "warmup only",
    "cold_student_rl": "RL on the cold student",
    "replay": "replay: more OPD in place of stage 3",
    "replay_labels": "replay: stage 1's labels in place of new ones",
    "labeled_bridge": "bridge on labeled prompts alone",
}
#: What a student is compared with, where both are there.
BASELINES = {
    "raw_teacher_bridge": ("direct_grpo",),
    "opd_student": (
        "raw_teacher_bridge",
        "raw_teacher_bridge_compute",
        "opd_only",
        "opd_only_compute",
        "warmup_only",
        "warmup_only_compute",
        "labeled_bridge",
        "direct_grpo",
    ),
    "rl_student": (
        "base_student",
        "direct_grpo",
        "direct_grpo_compute",
        "opd_student",
        "replay",
        "replay_labels",
        "cold_student_rl",
        "rl_teacher",
    ),
}
PACKAGES = ("s2d", "torch", "transformers", "trl", "accelerate", "peft", "math-verify", "vllm")


def build(layout: JobLayout) -> Report:
    """The report of what this job has done so far."""
    plan = load_plan(layout.plan.read_text())
    results = _results(layout, plan)
    arms = [_arm(layout, plan, results, model) for model in _evaluated(layout, plan)]
    return Report(
        complete="evaluate" in results,
        arms=arms,
        comparisons=_comparisons(layout, plan, [arm.model for arm in arms]),
        stages=[_summary(plan, result) for result in results.values()],
        gates=[_gate(layout, plan, result) for result in results.values() if result.gate is not None],
        labels=plan.data.labels,
        ledger=_ledger(layout),
        curves={name: curve for name in plan.ids() if (curve := _curves(layout.stage(name)))},
        provenance=_provenance(layout, plan),
    )


def _results(layout: JobLayout, plan: Plan) -> dict[str, StageResult]:
    return {
        name: StageResult.model_validate_json(layout.result(name).read_text())
        for name in plan.ids()
        if layout.result(name).exists()
    }


def _evaluated(layout: JobLayout, plan: Plan) -> list[str]:
    return [role for role in plan.stage("evaluate").models if _scores_path(layout, role).exists()]


def _scores_path(layout: JobLayout, role: str) -> Path:
    return layout.evaluations / f"test-{role}.json"


def _gate(layout: JobLayout, plan: Plan, result: StageResult) -> Gate:
    assert result.gate is not None
    arm, told = plan.stage(result.stage).arm, result.gate.model_dump()
    checks = _checks(layout.stage(result.stage))
    return Gate(stage=result.stage, arm=arm, decided=_decision(plan, arm, result.gate.passed), checks=checks, **told)


def _decision(plan: Plan, arm: str, passed: bool) -> Decision:
    """What the runner does by the plan, see `s2d.runner.pipeline`."""
    if arm != WORKFLOW:
        return "measured only"
    if passed:
        return "went on"
    return "stopped" if plan.gates.on_failure == "stop" else "went on although it failed, as asked"


def _checks(folder: Path) -> list[Check]:
    """C2 by step; C1 has none. A step that was measured again after a kill counts once, with its last values."""
    events = [event for event in _events(folder) if event["type"] == "gate" and event["step"] is not None]
    by_step = {event["step"]: event["data"] for event in events}
    return [_check(step, by_step[step]) for step in sorted(by_step)]


def _check(step: int, told: dict[str, Any]) -> Check:
    kl, agreement = (told["measured"][name] for name in ("reverse_kl", "top_token_agreement"))
    return Check(step=step, reverse_kl=kl, top_token_agreement=agreement, passed=told["passed"])


def _ledger(layout: JobLayout) -> list[Spending]:
    counts = Counter((one.arm, one.stage, one.role) for one in Ledger(layout.ledger).read())
    return [Spending(arm=arm, stage=stage, role=role, labels=n) for (arm, stage, role), n in counts.items()]


def _summary(plan: Plan, result: StageResult) -> StageSummary:
    return StageSummary(
        id=result.stage,
        arm=plan.stage(result.stage).arm,
        kind=result.kind,
        steps=result.steps,
        tokens=result.tokens,
        flops=result.flops,
        seconds=round(result.seconds, 2),
        peak_memory_gib=result.peak_memory_gib,
        labels=result.labels,
        dropped_prompts=result.dropped_prompts,
    )


def _arm(layout: JobLayout, plan: Plan, results: dict[str, StageResult], role: str) -> ArmResult:
    scores = load_scores(_scores_path(layout, role))
    mean, k = avg_at_k(scores.rewards), len(scores.rewards[0])
    needed = _trunk(plan, results, role)
    return ArmResult(
        model=role,
        label=label(role),
        arm=_arm_of(plan, role),
        avg_at_k=mean.mean,
        low=mean.low,
        high=mean.high,
        k=k,
        problems=len(scores.rewards),
        pass_at_k=_passes(scores, k),
        truncated=scores.truncated,
        labels_used=_labels_used(plan, results, needed),
        updates=_updates(plan, results, role, needed),
        flops=sum(results[name].flops for name in needed),
        seconds=round(sum(results[name].seconds for name in needed), 2),
    )


def _passes(scores: Scores, k: int) -> list[PassAtK]:
    """pass@1, 2, 4, … and pass@k itself."""
    powers = [2**i for i in range(k.bit_length()) if 2**i < k]
    found = [(one, pass_at_k(scores.rewards, one)) for one in [*powers, k]]
    return [PassAtK(k=one, mean=p.mean, low=p.low, high=p.high) for one, p in found]


def label(model: str) -> str:
    """What a person reads for a model's name."""
    trunk = model.removesuffix("_compute")
    return LABELS.get(trunk, trunk) + (", compute-matched" if trunk != model else "")


def _trunk(plan: Plan, results: dict[str, StageResult], model: str) -> tuple[str, ...]:
    """The stages behind a model; of candidates only the one that was kept."""
    chosen = {name: result.data["chosen"] for name, result in results.items() if result.kind == "select"}
    return trunk(plan.stages, model, chosen)


def _arm_of(plan: Plan, model: str) -> str:
    return next((stage.arm for stage in plan.stages if made_by(stage) == model), WORKFLOW)


def _labels_used(plan: Plan, results: dict[str, StageResult], needed: tuple[str, ...]) -> int:
    """Distinct labels that were really drawn: stages with the same use draw from the same labels."""
    drawn: dict[tuple[str, ...], int] = {}
    for name in needed:
        stage = plan.stage(name)
        if isinstance(stage, Grpo):
            drawn[stage.label_roles] = max(drawn.get(stage.label_roles, 0), results[name].labels)
    return sum(drawn.values())


def _updates(plan: Plan, results: dict[str, StageResult], model: str, needed: tuple[str, ...]) -> int:
    """Steps of the stages that trained this very model, from its base on."""
    base = base_of(plan.stages, model)
    trained = [name for name in needed if isinstance(plan.stage(name), Training)]
    return sum(results[name].steps for name in trained if base_of(plan.stages, plan.stage(name).trains) == base)


def _comparisons(layout: JobLayout, plan: Plan, models: list[str]) -> list[Comparison]:
    """The differences that the method's claims are about, as far as the job has both sides."""
    pairs = [(arm, one) for arm, baselines in BASELINES.items() for one in baselines]
    if "rl_student" not in models:
        pairs += [("opd_student", one) for one in ("base_student", "rl_teacher")]
    return [_compare(layout, plan, *pair) for pair in pairs if set(pair) <= set(models)]


def _compare(layout: JobLayout, plan: Plan, arm: str, baseline: str) -> Comparison:
    before, after = (load_scores(_scores_path(layout, role)) for role in (baseline, arm))
    gain = paired_gain(before.means, after.means, confidence=0.975, seed=plan.seed)
    return Comparison(arm=arm, baseline=baseline, gain=gain.mean, low=gain.low, high=gain.high)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> points. A step that was run again after a kill counts once, with its last values."""
    by_step: dict[int, dict[str, float]] = {}
    for event in _events(folder):
        if event["type"] == "metrics":
            by_step[event["step"]] = event["data"]["metrics"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(by_step):
        for name, value in by_step[step].items():
            curves.setdefault(name, []).append((step, value))
    return curves


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    """What the attempts at a stage told, one after the other."""
    for path in event_files(folder):
        yield from read_events(path)


def _provenance(layout: JobLayout, plan: Plan) -> Provenance:
    split = layout.data / "split.json"
    hashes: dict[str, str] = {}
    if split.exists():
        hashes.update(SplitReport.model_validate_json(split.read_text()).sha256.items())
    if plan.data.file_sha256:
        hashes["upload"] = plan.data.file_sha256
    return Provenance(
        teacher=plan.teacher.name,
        student=plan.student.name,
        verifier=plan.verifier.name,
        plan_id=plan.id,
        plan_sha256=plan.content_hash(),
        data_sha256=hashes,
        seed=plan.seed,
        versions=_versions(),
        hardware=plan.hardware.model_dump(),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
