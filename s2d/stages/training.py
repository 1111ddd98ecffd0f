"""What the training stages share: TRL's arguments from the plan, and one run from checkpoint to saved model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, PreTrainedModel, TrainerCallback, TrainingArguments

from s2d.plan.document import Training
from s2d.runner.task import StageResult
from s2d.stages.callbacks import Checkpointing, Report, RoomToSave, StopWhenAsked
from s2d.stages.checkpoints import newest_valid
from s2d.stages.distributed import from_first
from s2d.stages.models import load_model, revision_of, save_model
from s2d.stages.runtime import Interrupted, StageRuntime

#: Checkpoints kept per stage: the newest, and the one before in case the newest is damaged.
KEEP = 2


class AlreadyDone(Exception):
    """Raised by a callback when the checkpoint that was resumed from needs no further step."""


def trainer_arguments(runtime: StageRuntime, steps: int) -> dict[str, Any]:
    """The arguments that every TRL config takes, from the plan."""
    stage: Training = runtime.stage
    plan = runtime.plan
    optim = stage.optim
    return {
        "output_dir": str(checkpoint_dir(runtime)),
        "max_steps": steps,
        "per_device_train_batch_size": stage.per_device_batch_size,
        "gradient_accumulation_steps": stage.gradient_accumulation,
        "learning_rate": optim.learning_rate,
        "lr_scheduler_type": optim.schedule,
        "warmup_steps": optim.warmup_steps,
        "weight_decay": optim.weight_decay,
        "adam_beta1": optim.beta1,
        "adam_beta2": optim.beta2,
        "max_grad_norm": optim.max_grad_norm,
        "temperature": stage.sampling.temperature,
        "top_p": stage.sampling.top_p,
        "top_k": stage.sampling.top_k,
        "max_completion_length": plan.max_completion_tokens,
        # The data are laid out in order beforehand, see `prompts.training_order`.
        "shuffle_dataset": False,
        "seed": stage.seed,
        "use_cpu": plan.hardware.device == "cpu",
        "bf16": stage.dtype == "bfloat16",
        "gradient_checkpointing": stage.gradient_checkpointing,
        **_sharding(stage),
        **_vllm(runtime),
        "save_strategy": "steps",
        "save_steps": stage.save_every,
        "save_total_limit": KEEP,
        "logging_steps": 1,
        # A NaN loss must be seen, not averaged away.
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": plan.hardware.device == "cuda",
    }


def _sharding(stage: Training) -> dict[str, Any]:
    """FSDP2: fp32 weights, their gradients and the optimizer's states are shared among the processes.

    Weights stay gathered from the first rollout of a step to the end of backward: to gather them for each token that is
    drawn would cost more than the memory is worth. Gradients are exchanged after each micro-batch, else each process
    would have all of them. Checkpoints are shared too: one process could hold all states no more than one device can.
    """
    if not stage.sharded:
        return {}
    return {
        "fsdp": True,
        "fsdp_config": {"reshard_after_forward": False, "state_dict_type": "SHARDED_STATE_DICT"},
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}},
    }


def exact_gradients(arguments: TrainingArguments) -> None:
    """Let sharded stages exchange gradients in fp32, as the others do: accelerate would in bf16."""
    if arguments.fsdp and arguments.bf16:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        arguments.fsdp_plugin_args["mixed_precision_policy"] = policy


def _vllm(runtime: StageRuntime) -> dict[str, Any]:
    """vLLM inside the trainer, for stages that draw rollouts; the warmup reads stored ones."""
    plan = runtime.plan
    if plan.rollout_engine != "vllm" or runtime.stage.kind == "warmup":
        return {}
    longest = plan.max_prompt_tokens + plan.max_completion_tokens
    return {"use_vllm": True, "vllm_mode": "colocate", "vllm_max_model_length": longest}


def checkpoint_dir(runtime: StageRuntime) -> Path:
    return runtime.folder / "checkpoints"


def student_model(runtime: StageRuntime) -> PreTrainedModel:
    """The model to train: fp32 weights for full fine-tuning (bf16 is autocast), the plan's dtype under LoRA."""
    stage: Training = runtime.stage
    dtype = stage.dtype if stage.lora else "float32"
    return _load(runtime, stage.starts_from, dtype)


def teacher_model(runtime: StageRuntime) -> PreTrainedModel:
    """The frozen teacher of a distillation stage."""
    model = _load(runtime, runtime.stage.teacher, runtime.stage.dtype)
    return model.requires_grad_(False).eval()


def _load(runtime: StageRuntime, role: Any, dtype: str) -> PreTrainedModel:
    # With several processes accelerate places the model; until then it stays in host memory.
    device = "cpu" if runtime.plan.hardware.devices > 1 or runtime.plan.hardware.device == "cpu" else "cuda:0"
    return load_model(runtime.task.models[role], dtype=dtype, device=device, revision=revision_of(runtime.plan, role))


def whole_model(trainer: Any, stage: Training) -> Any:
    """The trained model with all of its weights, in the first process; every process must ask."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if not stage.sharded:
        return model
    weights = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.accelerator.is_main_process:
        return None
    whole = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    whole.load_state_dict(weights)
    whole.generation_config = model.generation_config
    return whole


def lora_config(stage: Training) -> Any:
    """PEFT's config for the plan's LoRA; None for full fine-tuning."""
    if stage.lora is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        r=stage.lora.rank,
        lora_alpha=stage.lora.alpha,
        lora_dropout=stage.lora.dropout,
        target_modules=stage.lora.target_modules,
        task_type="CAUSAL_LM",
    )


def train(
    runtime: StageRuntime,
    trainer: Any,
    *,
    rows_per_step: int,
    label_rows: int = 0,
    callbacks: tuple[TrainerCallback, ...] = (),
    dropped: int = 0,
    done: Callable[[], bool] = lambda: False,
    before_saving: Callable[[Any], Any] = lambda model: model,
) -> StageResult:
    """Train to the end, or from the newest valid checkpoint on, and save the model under its role.

    Args:
        rows_per_step: dataset rows behind one optimizer step; the sampler position is `step * rows_per_step`.
        label_rows: distinct labeled rows among them, for the ledger in the manifest.
        done: whether the stage came to its end before its last step.
        before_saving: takes the trained model and returns what is saved, in the one process that saves.

    Raises:
        Interrupted: told to stop; a sealed checkpoint of the last whole step is there.
        StageFailure: code "nan_loss".
    """
    torch.set_num_threads(runtime.plan.hardware.cpu_threads)
    report = Report(runtime, trainer.args.max_steps)
    sealing = Checkpointing(runtime, rows_per_step=rows_per_step, label_rows=label_rows)
    room = RoomToSave(checkpoint_dir(runtime))
    # In this order: what decides to save comes before what asks whether there is room.
    for callback in (report, *callbacks, StopWhenAsked(runtime), room, sealing):
        trainer.add_callback(callback)
    resume = from_first(lambda: newest_valid(checkpoint_dir(runtime), runtime.plan.id))
    if resume is not None:
        runtime.emit("message", f"resuming from {resume.name}")
    started = time.monotonic()
    with contextlib.suppress(AlreadyDone):
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    whole = trainer.state.global_step >= trainer.args.max_steps or done()
    if runtime.stop_requested and not whole:
        raise Interrupted
    trained = whole_model(trainer, runtime.stage)
    if trainer.accelerator.is_main_process:
        model = before_saving(trained)
        save_model(model, trainer.processing_class, runtime.layout.model(runtime.stage.trains))
    trainer.accelerator.wait_for_everyone()
    return StageResult(
        stage=runtime.stage.id,
        kind=runtime.stage.kind,
        steps=trainer.state.global_step,
        tokens=report.tokens,
        # A short run does not come to all of its labels: the order is a pass over them before any comes again.
        labels=min(label_rows, trainer.state.global_step * rows_per_step),
        dropped_prompts=dropped,
        data={"train_seconds": time.monotonic() - started, "final_metrics": report.latest},
    )
