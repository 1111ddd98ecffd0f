"""The embedded engine: `generate` of transformers, batches of like length, left padding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from s2d.plan.document import Sampling
from s2d.rollouts.engine import Rollout


class TransformersEngine:
    """Generates with a model that is already loaded, which stays the caller's."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self._model = model
        self._pad = tokenizer.pad_token_id
        self._eos = eos_ids(model, tokenizer)
        self._batch_size = batch_size

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
        config = self._config(sampling, max_tokens)
        # Like lengths together: less padding. The sort is stable, so the same input gives the same batches.
        order = sorted((i for i in range(len(prompts)) for _ in range(samples)), key=lambda i: len(prompts[i]))
        drawn: list[list[Rollout]] = [[] for _ in prompts]
        was_training = self._model.training
        self._model.eval()
        with torch.no_grad(), _seeded(seed, self._model.device):
            for start in range(0, len(order), self._batch_size):
                chunk = order[start : start + self._batch_size]
                for index, rollout in zip(chunk, self._batch([prompts[i] for i in chunk], config), strict=True):
                    drawn[index].append(rollout)
                if on_batch:
                    on_batch(start + len(chunk), len(order))
        self._model.train(was_training)
        return drawn

    def close(self) -> None:
        del self._model

    def _config(self, sampling: Sampling, max_tokens: int) -> GenerationConfig:
        return GenerationConfig(
            max_new_tokens=max_tokens,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            repetition_penalty=1.0,
            pad_token_id=self._pad,
            eos_token_id=self._eos,
            disable_compile=True,
        )

    def _batch(self, prompts: Sequence[Sequence[int]], config: GenerationConfig) -> list[Rollout]:
        width = max(map(len, prompts))
        ids_BP = torch.full((len(prompts), width), self._pad, dtype=torch.long)
        mask_BP = torch.zeros_like(ids_BP)
        for row, prompt in enumerate(prompts):
            ids_BP[row, width - len(prompt) :] = torch.tensor(prompt)
            mask_BP[row, width - len(prompt) :] = 1
        device = self._model.device
        out_BT = self._model.generate(
            input_ids=ids_BP.to(device), attention_mask=mask_BP.to(device), generation_config=config
        )
        return [self._rollout(completion) for completion in out_BT[:, width:].tolist()]

    def _rollout(self, completion: list[int]) -> Rollout:
        for position, token in enumerate(completion):
            if token in self._eos:
                return Rollout(completion[: position + 1], truncated=False)
        return Rollout(completion, truncated=True)


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends a completion: the tokenizer's EOS and those that the model's generation config names."""
    declared = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = [declared] if isinstance(declared, int) else list(declared or [])
    return list(dict.fromkeys([tokenizer.eos_token_id, *ids]))


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws from `seed` inside, and leaves the outer random state as it was: training must not notice."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
