"""Between stages 1 and 2a: gate C1 on the validation labels, then the teacher rollouts that the warmup trains on.

C1 asks whether stage 1 reward-shaped the teacher: its avg@k gain over its raw self, paired over validation problems,
must exceed the plan's bound with the plan's confidence. It is judged before anything is spent on the bridge.
"""

from __future__ import annotations

from pathlib import Path

from s2d.evaluate.scores import Scores
from s2d.evaluate.statistics import paired_gain
from s2d.plan.document import Plan, TeacherRollouts
from s2d.plan.graph import WORKFLOW
from s2d.rollouts.engine import Rollout
from s2d.rollouts.prompts import Prompt, load_prompts
from s2d.rollouts.stored import RolloutStore, StoredRollout
from s2d.runner.task import GateResult, StageResult
from s2d.stages.checkpoints import sha256_file
from s2d.stages.inference import opened
from s2d.stages.labels import check_bridge
from s2d.stages.runtime import StageRuntime
from s2d.stages.validation import validate

#: Prompts in one stored part: what a kill can cost.
PART = 512


def run(runtime: StageRuntime) -> StageResult:
    stage: TeacherRollouts = runtime.stage
    if stage.arm != WORKFLOW:
        return _generate(runtime, StageResult(stage=stage.id, kind=stage.kind))
    k = runtime.plan.gates.c1.k
    before, after = validate(runtime, "base_teacher", k=k), validate(runtime, stage.teacher, k=k)
    gate = judge_c1(runtime.plan, before, after)
    runtime.gate(gate)
    tokens = before.completion_tokens + after.completion_tokens
    result = StageResult(
        stage=stage.id,
        kind=stage.kind,
        gate=gate,
        tokens=tokens,
        prompt_tokens=before.prompt_tokens + after.prompt_tokens,
        labels=len(before.ids),
    )
    if not gate.passed and runtime.plan.gates.on_failure == "stop":
        return result
    return _generate(runtime, result)


def judge_c1(plan: Plan, before: Scores, after: Scores) -> GateResult:
    """C1: the teacher beats its raw self, with confidence, on the same validation problems."""
    gate = plan.gates.c1
    gain = paired_gain(before.means, after.means, confidence=gate.confidence, seed=plan.seed)
    passed = gain.low > gate.min_gain
    measured = {
        "before": sum(before.means) / len(before.means),
        "after": sum(after.means) / len(after.means),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "confidence": gate.confidence,
        "min_gain": gate.min_gain,
        "problems": len(before.means),
        "k": gate.k,
    }
    message = (
        f"C1 {'holds' if passed else 'does not hold'}: teacher avg@{gate.k} {measured['before']:.3f} -> "
        f"{measured['after']:.3f} on {len(before.means)} validation problems, gain {gain.mean:+.3f}, "
        f"with {gate.confidence:.0%} confidence at least {gain.low:+.3f}; it must exceed {gate.min_gain:+.3f}"
    )
    return GateResult(gate="c1", passed=passed, measured=measured, message=message)


def _generate(runtime: StageRuntime, result: StageResult) -> StageResult:
    stage: TeacherRollouts = runtime.stage
    store = RolloutStore(runtime.layout.rollouts(stage.id))
    with opened(runtime, stage.teacher) as (engine, tokenizer):
        pool = [runtime.layout.prompts(stage.pool)]
        prompts, dropped = load_prompts(pool, tokenizer, runtime.plan.max_prompt_tokens)
        check_bridge(runtime, prompts)
        prompts = prompts[: stage.prompts]
        runtime.progress(0, len(prompts), "teacher rollouts")
        for part, start in enumerate(range(0, len(prompts), PART)):
            if not store.has(part):
                chunk = prompts[start : start + PART]
                drawn = engine.generate(
                    [prompt.ids for prompt in chunk],
                    samples=stage.samples_per_prompt,
                    sampling=stage.sampling,
                    max_tokens=runtime.plan.max_completion_tokens,
                    seed=stage.seed + part,
                    on_batch=lambda _done, _total: runtime.check_stop(),
                )
                store.write(part, _stored(chunk, drawn))
            runtime.progress(min(start + PART, len(prompts)), len(prompts), "teacher rollouts")
    tokens = sum(len(one.ids) for one in store.read())
    provenance = store.seal(
        plan=runtime.plan.id,
        teacher=stage.teacher,
        teacher_weights=_weights_hash(Path(runtime.task.models[stage.teacher])),
        sampling=stage.sampling.model_dump(),
        max_tokens=runtime.plan.max_completion_tokens,
        seed=stage.seed,
        engine=runtime.plan.rollout_engine,
        prompts=len(prompts),
        samples_per_prompt=stage.samples_per_prompt,
    )
    return result.model_copy(
        update={
            "tokens": result.tokens + tokens,
            "prompt_tokens": result.prompt_tokens + stage.samples_per_prompt * sum(len(one.ids) for one in prompts),
            "dropped_prompts": dropped,
            "data": {"provenance": provenance},
        }
    )


def _stored(prompts: list[Prompt], drawn: list[list[Rollout]]) -> list[StoredRollout]:
    return [
        StoredRollout(row_id=prompt.row_id, ids=rollout.ids, truncated=rollout.truncated)
        for prompt, group in zip(prompts, drawn, strict=True)
        for rollout in group
    ]


def _weights_hash(model: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(model.glob("*.safetensors"))}
