"""What the trainers tell us as they go: metrics into events, manifests onto checkpoints, a stop when asked."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from s2d.errors import StageFailure
from s2d.stages.checkpoints import seal
from s2d.stages.distributed import barrier
from s2d.stages.runtime import StageRuntime

#: TRL's name -> ours. Units: rewards in [0, 1], shares in [0, 1], KL and entropy in nats per token, lengths in tokens.
METRICS = {
    "loss": "loss",
    "grad_norm": "grad_norm",
    "learning_rate": "learning_rate",
    "reward": "reward_mean",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "groups_without_signal",
    "entropy": "entropy",
    "forward_kl": "forward_kl",
    "reverse_kl": "reverse_kl",
    "completions/mean_length": "completion_tokens_mean",
    "completions/clipped_ratio": "truncated",
    "clip_ratio/region_mean": "clip_ratio",
    "verifier_timeouts": "verifier_timeouts",
}


#: Tokenizer, configuration, random states and the trainer's own state.
SMALL_FILES_BYTES = 2**19


class Report(TrainerCallback):
    """One `metrics` event a step. A loss or gradient norm that is no number ends the stage."""

    def __init__(self, runtime: StageRuntime, steps: int) -> None:
        self._runtime = runtime
        self._steps = steps
        self._clock = time.monotonic()
        self._tokens_before: int | None = None
        self.tokens = 0
        self.latest: dict[str, float] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._clock = time.monotonic()
        self.tokens = int(state.num_input_tokens_seen)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        logs = logs or {}
        if "train_runtime" in logs:  # the trainer's own summary at the end
            return
        metrics = {ours: float(logs[theirs]) for theirs, ours in METRICS.items() if logs.get(theirs) is not None}
        self._refuse_nan(metrics, state.global_step)
        # JSON has no NaN: a metric that could not be computed this time is left out.
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        now, seen = time.monotonic(), int(state.num_input_tokens_seen)
        metrics["tokens_per_second"] = (seen - self.tokens) / max(now - self._clock, 1e-9)
        self._clock, self.tokens, self.latest = now, seen, metrics
        self._runtime.emit("metrics", step=state.global_step, steps=self._steps, tokens=seen, metrics=metrics)

    @staticmethod
    def _refuse_nan(metrics: dict[str, float], step: int) -> None:
        for name in ("loss", "grad_norm"):
            if not math.isfinite(metrics.get(name, 0.0)):
                raise StageFailure(f"{name} is {metrics[name]} at step {step}.", code="nan_loss", step=step)


class StopWhenAsked(TrainerCallback):
    """After SIGTERM: finish the step, save a checkpoint, stop. All processes of a launch agree on the step."""

    def __init__(self, runtime: StageRuntime) -> None:
        self._runtime = runtime

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if _anywhere(self._runtime.stop_requested, args.device):
            self._runtime.stop_requested = True
            control.should_save = True
            control.should_training_stop = True


def _anywhere(flag: bool, device: torch.device) -> bool:
    if not torch.distributed.is_initialized():
        return flag
    shared = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return bool(shared.item())


class RoomToSave(TrainerCallback):
    """Before a checkpoint: is there room for it? Half a checkpoint on a full disk would help nobody."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **_: Any
    ) -> None:
        """Raises StageFailure, code "disk_full"; the checkpoints that are there stay."""
        if not (control.should_save and state.is_world_process_zero):
            return
        self._root.mkdir(parents=True, exist_ok=True)
        needed, free = checkpoint_bytes(model), shutil.disk_usage(self._root).free
        if free < needed:
            sizes = f"{needed / 2**20:,.0f} MiB and {free / 2**20:,.0f} MiB are free"
            told = f"A checkpoint under {self._root} needs about {sizes}."
            raise StageFailure(told, code="disk_full", step=state.global_step)


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """About what a checkpoint takes: the weights that are trained, AdamW's two moments of each, and small files."""
    trained = sum(one.numel() * one.element_size() for one in model.parameters() if one.requires_grad)
    return 3 * trained + SMALL_FILES_BYTES


class Checkpointing(TrainerCallback):
    """Seals each checkpoint with its manifest once the trainer has written all of it."""

    def __init__(self, runtime: StageRuntime, *, rows_per_step: int, label_rows: int) -> None:
        self._runtime = runtime
        self._rows_per_step = rows_per_step
        self._label_rows = label_rows

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        # Each process writes its own random state into the folder: the manifest waits for all of them.
        barrier()
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        position = state.global_step * self._rows_per_step
        manifest = seal(
            folder,
            plan_id=self._runtime.plan.id,
            stage=self._runtime.task.stage,
            step=state.global_step,
            sampler_position=position,
            labels_spent=min(position, self._label_rows),
        )
        size = sum(size for size, _ in manifest.files.values())
        self._runtime.emit("checkpoint", f"{folder.name} written", step=state.global_step, bytes=size, path=str(folder))
