"""avg@k of one model on the validation labels: what gate C1 and the choice between candidates rest on."""

from __future__ import annotations

from s2d.evaluate.score import score
from s2d.evaluate.scores import Scores, load_scores
from s2d.rollouts.prompts import load_prompts
from s2d.stages.inference import opened
from s2d.stages.labels import check_account
from s2d.stages.runtime import StageRuntime
from s2d.verifiers.pool import GradingPool


def validate(runtime: StageRuntime, model: str, *, k: int) -> Scores:
    """Rewards of `k` completions a problem; kept, so that a restart does not draw them again."""
    path = runtime.layout.evaluations / f"validation-{model}.json"
    if path.exists():
        return load_scores(path)
    plan, stage = runtime.plan, runtime.stage
    with opened(runtime, model) as (engine, tokenizer), GradingPool(plan.verifier) as pool:
        problems, _ = load_prompts([runtime.layout.data / "validation.jsonl"], tokenizer, plan.max_prompt_tokens)
        check_account(runtime, problems)
        scores = score(
            engine,
            tokenizer,
            problems,
            pool,
            k=k,
            sampling=stage.sampling,
            max_tokens=plan.max_completion_tokens,
            seed=stage.seed,
            on_batch=lambda done, total: runtime.progress(done, total, f"validating {model}"),
        )
    scores.save(path, role=model, split="validation")
    return scores
