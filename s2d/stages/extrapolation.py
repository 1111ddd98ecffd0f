"""Extrapolation along the update of a bridge stage (EffOPD, arXiv 2605.11739): start + (1 + a) (end - start).

Once, at the stage's end, the factors a are tried in their order until the reverse KL on the student's own rollouts of
held-out prompts rises, and the one with the lowest is kept. No label is read, and a = 0 is the first: by that measure
the student is never worse than without. EffOPD also extrapolates on the way; this does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from s2d.evaluate.kl import KlMeasurement, measure_kl
from s2d.plan.document import Opd
from s2d.rollouts.prompts import Prompt
from s2d.stages.models import load_model, revision_of
from s2d.stages.runtime import StageRuntime


class Extrapolation:
    """Called with the trained model it returns the one to keep. `tokens` were scored for that, `tried` is the outcome.

    Args:
        prompts: held out; their answers are not read.
    """

    def __init__(self, runtime: StageRuntime, teacher: PreTrainedModel, tokenizer: Any, prompts: list[Prompt]) -> None:
        self._runtime = runtime
        self._teacher = teacher
        self._tokenizer = tokenizer
        self._prompts = prompts
        self.tokens = 0
        self.tried: dict[float, float] = {}

    def __call__(self, model: Any) -> Any:
        stage: Opd = self._runtime.stage
        if not stage.extrapolate:
            return model
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        start, end = self._start(stage), _copied(model)
        best, lowest = 0.0, math.inf
        for a in (0.0, *stage.extrapolate):
            self.tried[a] = kl = self._kl(_moved(model, start, end, a))
            if kl >= lowest:
                break
            best, lowest = a, kl
        told = ", ".join(f"{a:g}: {kl:.4f}" for a, kl in self.tried.items())
        self._runtime.emit("message", f"the update is prolonged by {best:g}; KL(student ‖ teacher) by factor {told}")
        return _moved(model, start, end, best)

    def _start(self, stage: Opd) -> dict[str, torch.Tensor]:
        """The weights that the stage started from."""
        runtime, role = self._runtime, stage.starts_from
        dtype = stage.dtype if stage.lora else "float32"
        revision = revision_of(runtime.plan, role)
        return _copied(load_model(runtime.task.models[role], dtype=dtype, device="cpu", revision=revision))

    def _kl(self, model: PreTrainedModel) -> float:
        runtime = self._runtime
        measured: KlMeasurement = measure_kl(
            model,
            self._teacher,
            self._tokenizer,
            [prompt.ids for prompt in self._prompts],
            sampling=runtime.stage.sampling,
            max_tokens=runtime.plan.max_completion_tokens,
            batch_size=runtime.stage.per_device_batch_size,
            seed=runtime.stage.seed,
        )
        self.tokens += measured.tokens + sum(len(prompt.ids) for prompt in self._prompts)
        return measured.reverse_kl


def _copied(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Every parameter by name, tied ones once, in host memory."""
    return {name: weights.detach().cpu().clone() for name, weights in model.named_parameters()}


def _moved(model: Any, start: Mapping[str, torch.Tensor], end: Mapping[str, torch.Tensor], factor: float) -> Any:
    """The model with its weights set to start + (1 + factor) (end - start); factor 0 is the end to the bit."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            weights.copy_(torch.lerp(start[name].float(), end[name].float(), 1.0 + factor))
    return model
