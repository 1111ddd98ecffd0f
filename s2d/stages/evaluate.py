"""The last stage: every model of the job on the test labels, which nothing before has read."""

from __future__ import annotations

from s2d.evaluate.score import score
from s2d.evaluate.scores import load_scores
from s2d.plan.document import Evaluate
from s2d.rollouts.prompts import load_prompts
from s2d.runner.task import StageResult
from s2d.stages.inference import opened
from s2d.stages.labels import check_account
from s2d.stages.runtime import StageRuntime
from s2d.verifiers.pool import GradingPool


def run(runtime: StageRuntime) -> StageResult:
    stage: Evaluate = runtime.stage
    tokens, dropped, problems = 0, 0, 0
    with GradingPool(runtime.plan.verifier) as pool:
        for index, role in enumerate(stage.models):
            dropped, problems = _evaluate(runtime, role, index, pool)
            tokens += load_scores(runtime.layout.evaluations / f"test-{role}.json").completion_tokens
    return StageResult(
        stage=stage.id,
        kind=stage.kind,
        steps=len(stage.models),
        tokens=tokens,
        labels=problems,
        dropped_prompts=dropped,
    )


def _evaluate(runtime: StageRuntime, role: str, index: int, pool: GradingPool) -> tuple[int, int]:
    """Score one model unless an earlier attempt did; returns (problems left out as too long, problems scored)."""
    stage: Evaluate = runtime.stage
    path = runtime.layout.evaluations / f"test-{role}.json"
    with opened(runtime, role) as (engine, tokenizer):
        problems, dropped = load_prompts(
            [runtime.layout.data / "test.jsonl"], tokenizer, runtime.plan.max_prompt_tokens
        )
        check_account(runtime, problems)
        if path.exists():
            return dropped, len(problems)
        count = len(stage.models)
        scores = score(
            engine,
            tokenizer,
            problems,
            pool,
            k=stage.k,
            sampling=stage.sampling,
            max_tokens=runtime.plan.max_completion_tokens,
            seed=stage.seed,
            on_batch=lambda done, total: runtime.progress(index * total + done, count * total, f"testing {role}"),
        )
    scores.save(path, role=role, split="test")
    mean = sum(scores.means) / len(scores.means)
    runtime.emit("evaluation", f"{role}: avg@{stage.k} {mean:.3f}", model=role, avg_at_k=mean, k=stage.k)
    return dropped, len(problems)
