"""The GPU engine: vLLM in this process, prompts as token ids, one seed per request so that batching cannot matter."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

from s2d.plan.document import Sampling
from s2d.rollouts.engine import Rollout


class VllmEngine:
    """Loads the model itself; `close` gives the memory back."""

    def __init__(
        self, model: str, *, dtype: str, max_model_len: int, batch_size: int, revision: str | None = None
    ) -> None:
        from vllm import LLM

        self._llm: Any = LLM(
            model=model,
            revision=revision,
            tokenizer_revision=revision,
            dtype=dtype,
            max_model_len=max_model_len,
            max_num_seqs=batch_size,
            trust_remote_code=False,
            load_format="safetensors",
            # The model's own generation defaults must not filter what the plan samples.
            generation_config="vllm",
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        samples: int,
        sampling: Sampling,
        max_tokens: int,
        seed: int,
        on_batch: Callable[[int, int], None] | None = None,
    ) -> list[list[Rollout]]:
        from vllm import SamplingParams

        params = [
            SamplingParams(
                n=samples,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                top_k=sampling.top_k or -1,
                max_tokens=max_tokens,
                # vLLM gives sample j of a request the seed + j.
                seed=seed + index * samples,
                skip_special_tokens=False,
            )
            for index in range(len(prompts))
        ]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._llm.generate(requests, params, use_tqdm=False)
        if on_batch:
            on_batch(len(prompts) * samples, len(prompts) * samples)
        return [
            [Rollout(list(one.token_ids), truncated=one.finish_reason == "length") for one in output.outputs]
            for output in outputs
        ]

    def close(self) -> None:
        del self._llm
        gc.collect()
