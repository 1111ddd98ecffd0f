"""Stages 1 and 3 and the direct control: GRPO on TRL's trainer, rewards from the plan's verifier.

A_i = (r_i − mean r) / (std r + ε) over the G rollouts of a prompt, token-mean aggregation, clip 0.2 / 0.28 and no
reference KL unless the plan says otherwise (paper, stages 1 and 3).
"""

from __future__ import annotations

from trl import GRPOConfig, GRPOTrainer

from s2d.plan.document import Grpo
from s2d.rollouts.prompts import load_prompts
from s2d.runner.task import StageResult
from s2d.stages.datasets import dataset
from s2d.stages.labels import check_account
from s2d.stages.models import tokenizer_of
from s2d.stages.rewards import VerifierReward
from s2d.stages.runtime import StageRuntime
from s2d.stages.training import exact_gradients, lora_config, student_model, train, trainer_arguments
from s2d.verifiers.pool import GradingPool


def run(runtime: StageRuntime) -> StageResult:
    """Train on the labels of the stage's own roles, and on no others."""
    stage: Grpo = runtime.stage
    role = stage.starts_from
    tokenizer = tokenizer_of(runtime.plan, role, runtime.task.models[role])
    files = [runtime.layout.data / f"{label_role}.jsonl" for label_role in stage.label_roles]
    prompts, dropped = load_prompts(files, tokenizer, runtime.plan.max_prompt_tokens)
    check_account(runtime, prompts)
    rows = dataset(prompts, stage.steps * stage.prompts_per_step, stage.seed)
    with GradingPool(runtime.plan.verifier) as pool:
        trainer = GRPOTrainer(
            model=student_model(runtime),
            args=config(runtime),
            reward_funcs=VerifierReward(pool),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=lora_config(stage),
        )
        return train(runtime, trainer, rows_per_step=stage.prompts_per_step, label_rows=len(prompts), dropped=dropped)


def config(runtime: StageRuntime) -> GRPOConfig:
    stage: Grpo = runtime.stage
    arguments = GRPOConfig(
        **trainer_arguments(runtime, stage.steps),
        num_generations=stage.group_size,
        loss_type=stage.loss_type,
        scale_rewards=stage.scale_rewards,
        epsilon=stage.epsilon,
        epsilon_high=stage.epsilon_high,
        beta=stage.beta,
        # The unbiased gradient of the reverse KL, also when the rollouts are a step old.
        use_bias_correction_kl=True,
    )
    exact_gradients(arguments)
    return arguments
