"""Pass rates of a plan's two base models on a sample of its own labels: `python -m s2d.probe.passrates TASK.json`.

The problems are those that stage 1 would train on, so no label of validation or test is looked at. Rollouts are drawn
as in GRPO, from the policy's own distribution, and graded by the plan's verifier; nothing is trained.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from pydantic import BaseModel, ConfigDict, Field

from s2d.data.ingest import ingest
from s2d.data.split import split
from s2d.errors import S2DError
from s2d.evaluate.score import score
from s2d.evaluate.scores import Scores
from s2d.plan.document import Model, Plan
from s2d.plan.evidence import Evidence, PassRates
from s2d.plan.memory import dtype_for
from s2d.plan.sizing import Drawing, generation_batch
from s2d.rollouts.prompts import load_prompts
from s2d.rollouts.transformers_engine import TransformersEngine
from s2d.runner.pipeline import row_counts
from s2d.stages.models import inference_device, load_model, revision_of, tokenizer_of
from s2d.verifiers.pool import GradingPool

#: Completions that are generated together, where memory allows it.
BATCH = 256


class Task(BaseModel):
    """What to measure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Plan
    file: Path
    problems: int = Field(ge=1)
    k: int = Field(ge=2)


def measure(task: Task) -> Evidence:
    """Both models, one after the other.

    Raises:
        InvalidData, StageFailure: the file or a model cannot be used.
    """
    torch.set_num_threads(task.plan.hardware.cpu_threads)
    with TemporaryDirectory() as name:
        folder = Path(name)
        with task.file.open("rb") as stream:
            ingest(stream, folder / "rows.jsonl")
        split(folder / "rows.jsonl", row_counts(task.plan), task.plan.data.split_seed, folder)
        labels = folder / "teacher_rl.jsonl"
        return Evidence(
            pair=(task.plan.teacher.name, task.plan.student.name),
            teacher=_rates(task, "base_teacher", task.plan.teacher, labels),
            student=_rates(task, "base_student", task.plan.student, labels),
        )


def _rates(task: Task, role: str, model: Model, labels: Path) -> PassRates:
    plan = task.plan
    tokenizer = tokenizer_of(plan, role, model.name)
    prompts, _ = load_prompts([labels], tokenizer, plan.max_prompt_tokens)
    problems = prompts[: task.problems]
    sampling = plan.stage("teacher_rl").sampling
    drawing = Drawing(model, plan.max_prompt_tokens, plan.max_completion_tokens, sampling)
    batch = generation_batch(drawing, plan.hardware, min(BATCH, len(problems) * task.k))
    device, dtype = inference_device(plan.hardware.device), dtype_for(plan.hardware)
    loaded = load_model(model.name, dtype=dtype, device=device, revision=revision_of(plan, role))
    engine = TransformersEngine(loaded.eval(), tokenizer, batch)

    def tell(done: int, of: int) -> None:
        print(f"{role}: {done} of {of} rollouts", file=sys.stderr, flush=True)

    try:
        with GradingPool(plan.verifier) as pool:
            scores = score(
                engine,
                tokenizer,
                problems,
                pool,
                k=task.k,
                sampling=sampling,
                max_tokens=plan.max_completion_tokens,
                seed=plan.seed,
                on_batch=tell,
            )
    finally:
        engine.close()
    return histogram(scores, task.k)


def histogram(scores: Scores, k: int) -> PassRates:
    """A rollout counts as solved when the verifier gives more than half of the reward."""
    solved = Counter(sum(reward > 0.5 for reward in group) for group in scores.rewards)
    return PassRates(
        k=k,
        solved=tuple(solved[times] for times in range(k + 1)),
        mean_completion_tokens=max(1.0, scores.completion_tokens / (k * len(scores.rewards))),
    )


def main(arguments: Sequence[str]) -> int:
    task = Task.model_validate_json(Path(arguments[0]).read_text())
    try:
        print(measure(task).model_dump_json())
    except S2DError as err:
        print(err.message, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
