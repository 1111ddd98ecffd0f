"""Gathers a job's folder into one `Report`."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from s2d.data.split import SplitReport
from s2d.evaluate.scores import Scores, load_scores
from s2d.evaluate.statistics import avg_at_k, paired_gain, pass_at_k
from s2d.plan.document import Grpo, ModelRole, Plan, StageKind, Training, load_plan
from s2d.report.document import ArmResult, Comparison, Gate, PassAtK, Provenance, Report, StageSummary
from s2d.runner.events import read_events
from s2d.runner.layout import JobLayout
from s2d.runner.task import StageResult

LABELS: dict[ModelRole, str] = {
    "base_teacher": "base teacher",
    "rl_teacher": "RL'd teacher",
    "base_student": "base student",
    "warmup_student": "student after warmup (2a)",
    "opd_student": "student after OPD (2b)",
    "rl_student": "student after RL (3)",
    "direct_grpo": "direct GRPO on the student",
}
PACKAGES = ("s2d", "torch", "transformers", "trl", "accelerate", "peft", "math-verify", "vllm")


def build(layout: JobLayout) -> Report:
    """The report of what this job has done so far."""
    plan = load_plan(layout.plan.read_text())
    results = _results(layout, plan)
    arms = [_arm(layout, plan, results, role) for role in _evaluated(layout, plan)]
    return Report(
        complete="evaluate" in results,
        arms=arms,
        comparisons=_comparisons(layout, plan, [arm.model for arm in arms]),
        stages=[_summary(result) for result in results.values()],
        gates=[Gate.model_validate(r.gate.model_dump()) for r in results.values() if r.gate is not None],
        labels=plan.data.labels,
        curves={kind: curve for kind in plan.kinds() if (curve := _curves(layout.stage(kind)))},
        provenance=_provenance(layout, plan),
    )


def _results(layout: JobLayout, plan: Plan) -> dict[StageKind, StageResult]:
    return {
        kind: StageResult.model_validate_json(layout.result(kind).read_text())
        for kind in plan.kinds()
        if layout.result(kind).exists()
    }


def _evaluated(layout: JobLayout, plan: Plan) -> list[ModelRole]:
    return [role for role in plan.stage("evaluate").models if _scores_path(layout, role).exists()]


def _scores_path(layout: JobLayout, role: ModelRole) -> Path:
    return layout.evaluations / f"test-{role}.json"


def _summary(result: StageResult) -> StageSummary:
    return StageSummary(
        kind=result.kind,
        steps=result.steps,
        tokens=result.tokens,
        seconds=round(result.seconds, 2),
        labels=result.labels,
        dropped_prompts=result.dropped_prompts,
    )


def _arm(layout: JobLayout, plan: Plan, results: dict[StageKind, StageResult], role: ModelRole) -> ArmResult:
    scores = load_scores(_scores_path(layout, role))
    mean, k = avg_at_k(scores.rewards), len(scores.rewards[0])
    needed = _needed(plan, role)
    return ArmResult(
        model=role,
        label=LABELS[role],
        avg_at_k=mean.mean,
        low=mean.low,
        high=mean.high,
        k=k,
        problems=len(scores.rewards),
        pass_at_k=_passes(scores, k),
        truncated=scores.truncated,
        labels_used=_labels_used(plan, results, needed),
        seconds=round(sum(results[kind].seconds for kind in needed), 2),
    )


def _passes(scores: Scores, k: int) -> list[PassAtK]:
    """pass@1, 2, 4, … and pass@k itself."""
    powers = [2**i for i in range(k.bit_length()) if 2**i < k]
    found = [(one, pass_at_k(scores.rewards, one)) for one in [*powers, k]]
    return [PassAtK(k=one, mean=p.mean, low=p.low, high=p.high) for one, p in found]


def _needed(plan: Plan, role: ModelRole) -> list[StageKind]:
    """The stages behind a model, its teacher's and its stored rollouts' included."""
    for stage in plan.stages:
        if isinstance(stage, Training) and stage.trains == role:
            before = [*_needed(plan, stage.starts_from)]
            teacher: ModelRole | None = getattr(stage, "teacher", None)
            before += _needed(plan, teacher) if teacher else []
            before += ["teacher_rollouts"] if stage.kind == "warmup" else []
            return list(dict.fromkeys([*before, stage.kind]))
    return []


def _labels_used(plan: Plan, results: dict[StageKind, StageResult], needed: list[StageKind]) -> int:
    """Labels that were really drawn; no two stages behind one model share any."""
    return sum(results[kind].labels for kind in needed if isinstance(plan.stage(kind), Grpo))


def _comparisons(layout: JobLayout, plan: Plan, roles: list[ModelRole]) -> list[Comparison]:
    """The workflow's student against each model that it must beat to have been worth it."""
    student: ModelRole = "rl_student" if "rl_student" in roles else "opd_student"
    if student not in roles:
        return []
    baselines: tuple[ModelRole, ...] = ("base_student", "direct_grpo", "opd_student", "rl_teacher")
    return [_compare(layout, plan, student, one) for one in baselines if one in roles and one != student]


def _compare(layout: JobLayout, plan: Plan, arm: ModelRole, baseline: ModelRole) -> Comparison:
    before, after = (load_scores(_scores_path(layout, role)) for role in (baseline, arm))
    gain = paired_gain(before.means, after.means, confidence=0.975, seed=plan.seed)
    return Comparison(arm=arm, baseline=baseline, gain=gain.mean, low=gain.low, high=gain.high)


def _curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Metric -> points. A step that was run again after a kill counts once, with its last values."""
    by_step: dict[int, dict[str, float]] = {}
    for path in sorted(folder.glob("events-*.jsonl")):
        for event in read_events(path):
            if event["type"] == "metrics":
                by_step[event["step"]] = event["data"]["metrics"]
    curves: dict[str, list[tuple[int, float]]] = {}
    for step in sorted(by_step):
        for name, value in by_step[step].items():
            curves.setdefault(name, []).append((step, value))
    return curves


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
