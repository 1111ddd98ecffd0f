"""Stage 2b, on-policy distillation: Σ_t KL(π_S(·|y_<t) ‖ π_T(·|y_<t)) on the student's own rollouts y.

Full vocabulary, both models in this process, no gradient through sampling (paper, stage 2b; TRL's `beta=1`).
"""

from __future__ import annotations

from s2d.plan.document import Opd
from s2d.rollouts.prompts import load_prompts
from s2d.runner.task import StageResult
from s2d.stages.datasets import dataset
from s2d.stages.distillation import REVERSE, BridgeTrainer, config
from s2d.stages.models import load_tokenizer
from s2d.stages.runtime import StageRuntime
from s2d.stages.training import lora_config, student_model, teacher_model, train


def run(runtime: StageRuntime) -> StageResult:
    stage: Opd = runtime.stage
    tokenizer = load_tokenizer(runtime.task.models[stage.starts_from])
    pool = [runtime.layout.data / "prompts.jsonl"]
    prompts, dropped = load_prompts(pool, tokenizer, runtime.plan.max_prompt_tokens)
    trainer = BridgeTrainer(
        model=student_model(runtime),
        teacher_model=teacher_model(runtime),
        args=config(runtime, stage.steps, REVERSE),
        train_dataset=dataset(prompts, stage.steps * stage.sequences_per_step, stage.seed),
        processing_class=tokenizer,
        peft_config=lora_config(stage),
    )
    return train(runtime, trainer, rows_per_step=stage.sequences_per_step, dropped=dropped)
