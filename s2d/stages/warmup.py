"""Stage 2a, forward-KL warmup: Σ_t KL(π_T(·|y_<t) ‖ π_S(·|y_<t)) on stored teacher rollouts y.

TRL's trainer distills on student rollouts only; the one thing changed here is where completions come from. The warmup
runs at least `steps` and then on until gate C2 holds, at most `max_steps` (paper, stage 2a and condition C2).
"""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from s2d.evaluate.kl import KlMeasurement, measure_kl
from s2d.plan.document import Plan, Warmup
from s2d.rollouts.prompts import Prompt, load_prompts
from s2d.rollouts.stored import RolloutStore
from s2d.runner.task import GateResult, StageResult
from s2d.stages.datasets import dataset
from s2d.stages.distillation import FORWARD, BridgeTrainer, config
from s2d.stages.distributed import from_first
from s2d.stages.models import load_tokenizer
from s2d.stages.runtime import StageRuntime
from s2d.stages.training import AlreadyDone, lora_config, student_model, teacher_model, train


class WarmupTrainer(BridgeTrainer):
    """Distills on the dataset's `completion_ids` where its parent would generate."""

    _stored: list[list[int]]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self._stored = [row["completion_ids"] for row in inputs]
        return super()._generate_and_score_completions(inputs)

    def _generate_single_turn(self, *_: Any, **__: Any) -> list[list[int]]:
        return self._stored


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
        """A run that was killed between the step at which C2 held and its end must not train a step more."""
        if state.global_step and self._due(state.global_step):
            self.result = self.measure(state.global_step)
            if self.result.passed:
                raise AlreadyDone

    def _due(self, step: int) -> bool:
        stage: Warmup = self._runtime.stage
        past = step - stage.steps
        return step == stage.max_steps or (past >= 0 and past % stage.check_every == 0)

    def measure(self, step: int) -> GateResult:
        trainer, runtime = self._trainer, self._runtime
        measured = measure_kl(
            trainer.accelerator.unwrap_model(trainer.model),
            trainer.accelerator.unwrap_model(trainer.teacher_model),
            trainer.processing_class,
            [prompt.ids for prompt in self._prompts],
            sampling=runtime.stage.sampling,
            max_tokens=runtime.plan.max_completion_tokens,
            batch_size=runtime.stage.per_device_batch_size,
            seed=runtime.stage.seed,
        )
        # Processes that differ by a rounding at the bound must not part ways.
        result = from_first(lambda: judge_c2(runtime.plan, measured, step))
        runtime.gate(result, step)
        return result


def judge_c2(plan: Plan, measured: KlMeasurement, step: int) -> GateResult:
    """C2: the student is close enough to the teacher for OPD to be informative."""
    bound = plan.gates.c2.max_kl
    passed = measured.reverse_kl <= bound
    verdict = "within" if passed else "over"
    message = (
        f"C2 after {step} warmup steps: KL(student ‖ teacher) {measured.reverse_kl:.3f} nats/token on "
        f"{measured.rollouts} student rollouts, {verdict} the bound of {bound:.3f}; "
        f"top tokens agree on {measured.top_token_agreement:.1%}"
    )
    document = {"step": step, "max_kl": bound, **measured.as_dict()}
    return GateResult(gate="c2", passed=passed, measured=document, message=message)


def run(runtime: StageRuntime) -> StageResult:
    stage: Warmup = runtime.stage
    plan = runtime.plan
    tokenizer = load_tokenizer(runtime.task.models[stage.starts_from])
    prompts, completions, dropped = stored_pairs(runtime, tokenizer)
    rows = dataset(prompts, stage.max_steps * stage.sequences_per_step, stage.seed, completion_ids=completions)
    trainer = WarmupTrainer(
        model=student_model(runtime),
        teacher_model=teacher_model(runtime),
        args=config(runtime, stage.max_steps, FORWARD),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=lora_config(stage),
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
    return result.model_copy(update={"gate": gate})


def stored_pairs(runtime: StageRuntime, tokenizer: Any) -> tuple[list[Prompt], list[list[int]], int]:
    """Prompt and stored completion, one pair a rollout."""
    pool = [runtime.layout.data / "prompts.jsonl"]
    prompts, dropped = load_prompts(pool, tokenizer, runtime.plan.max_prompt_tokens)
    by_row = {prompt.row_id: prompt for prompt in prompts}
    stored = list(RolloutStore(runtime.layout.rollouts).read())
    return [by_row[one.row_id] for one in stored], [one.ids for one in stored], dropped
