"""Stage 2b, on-policy distillation: Σ_t KL(π_S(·|y_<t) ‖ π_T(·|y_<t)) on the student's own rollouts y.

Full vocabulary, both models in this process, no gradient through sampling (paper, stage 2b; TRL's `beta=1`).
"""

from __future__ import annotations

from s2d.plan.document import Opd
from s2d.rollouts.prompts import load_prompts
from s2d.runner.task import StageResult
from s2d.stages.datasets import dataset
from s2d.stages.distillation import REVERSE, BridgeTrainer, config
from s2d.stages.extrapolation import Extrapolation
from s2d.stages.labels import check_bridge
from s2d.stages.models import tokenizer_of
from s2d.stages.runtime import StageRuntime
from s2d.stages.training import lora_config, student_model, teacher_model, train


def run(runtime: StageRuntime) -> StageResult:
    stage: Opd = runtime.stage
    plan = runtime.plan
    tokenizer = tokenizer_of(plan, stage.starts_from, runtime.task.models[stage.starts_from])
    pool = [runtime.layout.prompts(stage.pool)]
    prompts, dropped = load_prompts(pool, tokenizer, plan.max_prompt_tokens)
    check_bridge(runtime, prompts)
    trainer = BridgeTrainer(
        model=student_model(runtime),
        teacher_model=teacher_model(runtime),
        args=config(runtime, stage.steps, REVERSE),
        train_dataset=dataset(prompts, stage.steps * stage.sequences_per_step, stage.seed),
        processing_class=tokenizer,
        peft_config=lora_config(stage),
        token_share=stage.token_share,
    )
    held_out, _ = load_prompts([runtime.layout.data / "validation.jsonl"], tokenizer, plan.max_prompt_tokens)
    teacher = trainer.accelerator.unwrap_model(trainer.teacher_model)
    extrapolation = Extrapolation(runtime, teacher, tokenizer, held_out[: plan.gates.c2.prompts])
    result = train(
        runtime, trainer, rows_per_step=stage.sequences_per_step, dropped=dropped, before_saving=extrapolation
    )
    if not extrapolation.tried:
        return result
    data = {**result.data, "extrapolation": {f"{a:g}": kl for a, kl in extrapolation.tried.items()}}
    return result.model_copy(update={"tokens": result.tokens + extrapolation.tokens, "data": data})
