"""Stage 2a, forward-KL warmup: Σ_t KL(π_T(·|y_<t) ‖ π_S(·|y_<t)) on stored teacher rollouts y.

TRL's trainer distills on student rollouts only; the one thing changed here is where completions come from. The warmup
runs at least `steps` and then on until gate C2 holds, at most `max_steps` (paper, stage 2a and condition C2).
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from s2d.atomic import write_atomic
from s2d.evaluate.kl import KlMeasurement, measure_kl
from s2d.plan.document import Plan, TeacherRollouts, Warmup
from s2d.rollouts.prompts import Prompt, load_prompts
from s2d.rollouts.stored import RolloutStore
from s2d.runner.task import GateResult, StageResult
from s2d.stages.datasets import dataset
from s2d.stages.distillation import FORWARD, BridgeTrainer, config, prefix_tokens
from s2d.stages.distributed import from_first
from s2d.stages.labels import check_bridge
from s2d.stages.models import tokenizer_of
from s2d.stages.runtime import StageRuntime
from s2d.stages.scored import ScoredOnce
from s2d.stages.training import AlreadyDone, lora_config, student_model, teacher_model, train


class WarmupTrainer(BridgeTrainer):
    """Distills on the dataset's `completion_ids` where its parent would generate.

    Args:
        scored: keeps what the teacher makes of the rollout with the number in the column `rollout`, so that it reads
            each of them once; None: it reads them each time.
    """

    _stored: list[list[int]]
    _from_teacher: torch.Tensor | None = None

    def __init__(self, *args: Any, scored: ScoredOnce | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scored = scored

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._stored = [row["completion_ids"] for row in inputs]
        batch = super()._generate_and_score_completions(inputs)
        if self._scored is not None:
            batch["rollout"] = torch.tensor([row["rollout"] for row in inputs])
        return batch

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self._stored

    def _compute_loss(self, unwrapped_student: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        if self._scored is not None:
            teacher = self.accelerator.unwrap_model(self.teacher_model)
            self._from_teacher = self._scored.batch(inputs, partial(super()._forward_pass, teacher))
        return super()._compute_loss(unwrapped_student, inputs, num_items_in_batch)

    def _forward_pass(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        if self._from_teacher is not None and args[0] is self.accelerator.unwrap_model(self.teacher_model):
            return self._from_teacher
        return super()._forward_pass(*args, **kwargs)


class UntilC2(TrainerCallback):
    """Measures C2 once `steps` are done and every `check_every` after; ends the training when it holds."""

    def __init__(self, runtime: StageRuntime, trainer: WarmupTrainer, prompts: list[Prompt]) -> None:
        self._runtime = runtime
        self._trainer = trainer
        self._prompts = prompts
        self.result: GateResult | None = None

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._due(state.global_step):
            self.result = self.measure(state.global_step)
            control.should_training_stop = control.should_training_stop or self.result.passed

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Measure where the student stands before it; a run that was killed between the step at which C2 held and its
        end must not train a step more."""
        if not state.global_step:
            self._measure_before()
        if state.global_step and self._due(state.global_step):
            self.result = self.measure(state.global_step)
            if self.result.passed:
                raise AlreadyDone

    def _due(self, step: int) -> bool:
        stage: Warmup = self._runtime.stage
        past = step - stage.steps
        return step == stage.max_steps or (past >= 0 and past % stage.check_every == 0)

    def _measure_before(self) -> None:
        """Was the warmup needed at all? Kept in a file, as a resumed run does not come by here."""
        measured = self._kl().as_dict()
        if self._runtime.rank == 0:
            write_atomic(_before(self._runtime), json.dumps(measured))
        told = f"{measured['reverse_kl']:.3f} nats/token, top tokens agree on {measured['top_token_agreement']:.1%}"
        self._runtime.emit("message", f"before the warmup KL(student ‖ teacher) is {told}", step=0)

    def measure(self, step: int) -> GateResult:
        # Processes that differ by a rounding at the bound must not part ways.
        measured = self._kl()
        result = from_first(lambda: judge_c2(self._runtime.plan, measured, step, _load_before(self._runtime)))
        self._runtime.gate(result, step)
        return result

    def _kl(self) -> KlMeasurement:
        trainer, runtime = self._trainer, self._runtime
        return measure_kl(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.accelerator.unwrap_model(trainer.teacher_model),
            trainer.processing_class,
            [prompt.ids for prompt in self._prompts],
            sampling=runtime.stage.sampling,
            max_tokens=runtime.plan.max_completion_tokens,
            batch_size=runtime.stage.per_device_batch_size,
            seed=runtime.stage.seed,
        )


def _before(runtime: StageRuntime) -> Path:
    return runtime.folder / "c2-before.json"


def _load_before(runtime: StageRuntime) -> dict[str, float]:
    measured: dict[str, float] = json.loads(_before(runtime).read_text())
    return measured


def judge_c2(plan: Plan, measured: KlMeasurement, step: int, before: dict[str, float]) -> GateResult:
    """C2: the student is close enough to the teacher for OPD to be informative.

    Args:
        before: the same measurement before the first step; it is told, and decides nothing.
    """
    bound = plan.gates.c2.max_kl
    agreement = plan.gates.c2.min_agreement
    passed = measured.reverse_kl <= bound and measured.top_token_agreement >= agreement
    message = (
        f"C2 {'holds' if passed else 'does not hold'} after {step} warmup steps: KL(student ‖ teacher) from "
        f"{before['reverse_kl']:.3f} to {measured.reverse_kl:.3f} nats/token on {measured.rollouts} student rollouts "
        f"(at most {bound:.3f}), top tokens agree on {measured.top_token_agreement:.1%} (at least {agreement:.1%})"
    )
    document = {"step": step, "max_kl": bound, "min_agreement": agreement, **measured.as_dict(), "before": before}
    return GateResult(gate="c2", passed=passed, measured=document, message=message)


def run(runtime: StageRuntime) -> StageResult:
    stage: Warmup = runtime.stage
    plan = runtime.plan
    tokenizer = tokenizer_of(runtime.plan, stage.starts_from, runtime.task.models[stage.starts_from])
    prompts, completions, dropped = stored_pairs(runtime, tokenizer)
    columns = {"completion_ids": completions, "rollout": range(len(completions))}
    rows = dataset(prompts, stage.max_steps * stage.sequences_per_step, stage.seed, **columns)
    scored = ScoredOnce(runtime.folder / "teacher") if stage.score_once else None
    trainer = WarmupTrainer(
        model=student_model(runtime),
        teacher_model=teacher_model(runtime),
        args=config(runtime, stage.max_steps, FORWARD),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(stage),
        token_share=stage.token_share,
        scored=scored,
    )
    held_out, _ = load_prompts([runtime.layout.data / "validation.jsonl"], tokenizer, plan.max_prompt_tokens)
    until_c2 = UntilC2(runtime, trainer, held_out[: plan.gates.c2.prompts])
    result = train(
        runtime,
        trainer,
        rows_per_step=stage.sequences_per_step,
        callbacks=(until_c2,),
        dropped=dropped,
        done=lambda: until_c2.result is not None and until_c2.result.passed,
    )
    # A checkpoint of the last step may have been resumed from: then no step ran, and nothing was measured yet.
    gate = until_c2.result or until_c2.measure(result.steps)
    result = result.model_copy(update={"gate": gate})
    if scored is None:
        return result
    if runtime.rank == 0:
        scored.discard()
    read = set(rows["rollout"][: result.steps * stage.sequences_per_step])
    tokens = sum(len(prompts[one].ids) + len(completions[one]) for one in read)
    return result.model_copy(update={"data": {**result.data, "teacher_tokens": tokens}})


def stored_pairs(runtime: StageRuntime, tokenizer: Any) -> tuple[list[Prompt], list[list[int]], int]:
    """Prompt and stored completion, or as much of it as is trained on, one pair a rollout."""
    drawn: TeacherRollouts = runtime.plan.stage(runtime.stage.rollouts)
    pool = [runtime.layout.prompts(drawn.pool)]
    prompts, dropped = load_prompts(pool, tokenizer, runtime.plan.max_prompt_tokens)
    check_bridge(runtime, prompts)
    by_row = {prompt.row_id: prompt for prompt in prompts}
    stored = list(RolloutStore(runtime.layout.rollouts(drawn.id)).read())
    return [by_row[one.row_id] for one in stored], [one.ids[: prefix_tokens(runtime)] for one in stored], dropped
