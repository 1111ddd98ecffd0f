"""A model opened for rollouts alone, on the engine that the plan names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers import PreTrainedTokenizerBase

from s2d.rollouts.engine import RolloutEngine
from s2d.stages.models import inference_device, load_model, revision_of, tokenizer_of
from s2d.stages.runtime import StageRuntime


@contextmanager
def opened(runtime: StageRuntime, role: str) -> Iterator[tuple[RolloutEngine, PreTrainedTokenizerBase]]:
    """The engine and the tokenizer of this role's model; its memory is given back at the end."""
    plan, stage = runtime.plan, runtime.stage
    torch.set_num_threads(plan.hardware.cpu_threads)
    name, revision = runtime.task.models[role], revision_of(plan, role)
    tokenizer = tokenizer_of(plan, role, name)
    engine = _engine(runtime, name, revision, stage.batch_size, tokenizer)
    try:
        yield engine, tokenizer
    finally:
        engine.close()
        if plan.hardware.device == "cuda":
            torch.cuda.empty_cache()


def _engine(
    runtime: StageRuntime, name: str, revision: str | None, batch_size: int, tokenizer: PreTrainedTokenizerBase
) -> RolloutEngine:
    plan, stage = runtime.plan, runtime.stage
    if plan.rollout_engine == "vllm":
        from s2d.rollouts.vllm_engine import VllmEngine

        longest = plan.max_prompt_tokens + plan.max_completion_tokens
        return VllmEngine(name, dtype=stage.dtype, max_model_len=longest, batch_size=batch_size, revision=revision)
    from s2d.rollouts.transformers_engine import TransformersEngine

    model = load_model(name, dtype=stage.dtype, device=inference_device(plan.hardware.device), revision=revision)
    return TransformersEngine(model.eval(), tokenizer, batch_size)
