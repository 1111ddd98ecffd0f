"""Build the demo pair: `python -m s2d.demo.pretrain --out DIR [--seed N]`.

Plain PyTorch pre-training of a Qwen3 teacher and student on the synthetic text of `task`. A document is a chat prompt,
its completion and EOS; the loss is on the completion. It runs on one thread, so the same seed gives the
same weights on one machine whatever else it is set to; another CPU or torch version may end at other weights.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TypeAlias

import torch
from safetensors.torch import load_file, save_file
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from s2d.demo.task import Mixture, completion, random_text
from s2d.demo.tokenizer import build_tokenizer

MAX_LENGTH = 1024
BATCH_SIZE = 16
WARMUP_STEPS = 50
REPORT_EVERY = 100
IGNORED = -100
# vLLM's CPU kernels refuse smaller heads, and the student is to be served by it.
HEAD_DIM = 32

#: Problems' texts and their completions.
Documents: TypeAlias = tuple[list[str], list[str]]
#: Draws so many documents for a step of a phase, which counts from 1.
Draw: TypeAlias = Callable[[int, int, Random], Documents]


@dataclass(frozen=True)
class Phase:
    """So many AdamW steps on one kind of text, with a cosine learning rate that starts at `learning_rate`."""

    steps: int
    learning_rate: float
    draw: Draw


@dataclass(frozen=True)
class Recipe:
    """One model's size and what it is pre-trained on."""

    name: str
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    initializer_range: float
    phases: tuple[Phase, ...]


def working(mixture: Mixture) -> Draw:
    """Random problems with completions of the mixture."""

    def draw(n: int, _step: int, rng: Random) -> Documents:
        texts = [random_text(rng) for _ in range(n)]
        return texts, [completion(text, mixture, rng) for text in texts]

    return draw


CLEAN = working(Mixture(full=1.0, half=0.0, full_slip=0.0, half_slip=0.0))
TEACHER_TEXT = working(Mixture(full=0.25, half=0.30, full_slip=0.08, half_slip=0.3))
STUDENT_TEXT = working(Mixture(full=0.03, half=0.30, full_slip=0.35, half_slip=0.4))

# Both first learn the operations from clean working, then to write it rarely and with slips, the student so
# rarely and with so many that GRPO alone hardly meets a careful answer that is better than a bare one.
# The weights start at about 1 / sqrt(hidden size): from the usual 0.02 the operations come late or never, by the seed.
TEACHER = Recipe("teacher", 128, 384, 4, 4, 0.08, (Phase(700, 2e-3, CLEAN), Phase(200, 2e-4, TEACHER_TEXT)))
STUDENT = Recipe("student", 48, 128, 2, 2, 0.1, (Phase(1200, 5e-3, CLEAN), Phase(300, 1e-3, STUDENT_TEXT)))


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 model with random weights and tied embeddings."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        initializer_range=recipe.initializer_range,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


def as_batch(tokenizer: PreTrainedTokenizerFast, documents: Documents) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (documents, length), padded on the right; labels ignore prompt and padding."""
    texts, completions = documents
    chats = [[{"role": "user", "content": text}] for text in texts]
    prompts = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True)["input_ids"]
    answers = tokenizer([text + tokenizer.eos_token for text in completions])["input_ids"]
    longest = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(texts), longest), tokenizer.pad_token_id)
    labels = torch.full((len(texts), longest), IGNORED)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def train_phase(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, phase: Phase, name: str, rng: Random
) -> None:
    """Train the model in place, printing the loss every `REPORT_EVERY` steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=phase.learning_rate, betas=(0.9, 0.99), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / WARMUP_STEPS, total_iters=WARMUP_STEPS)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, phase.steps - WARMUP_STEPS)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [warmup, cosine], [WARMUP_STEPS])
    began = time.monotonic()
    for step in range(1, phase.steps + 1):
        ids, labels = as_batch(tokenizer, phase.draw(BATCH_SIZE, step, rng))
        # Causal attention never looks at padding on the right, so no mask is needed.
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % REPORT_EVERY == 0 or step == phase.steps:
            seconds = time.monotonic() - began
            print(f"{name} step {step}/{phase.steps} loss {loss.item():.3f} ({seconds:.0f} s)", flush=True)


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model, generation settings and tokenizer as transformers reads them.

    Weights are kept as bfloat16 to halve the files; the config still says float32, so they load as float32.
    """
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True, top_k=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    halved = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(weights).items()}
    save_file(halved, weights, metadata={"format": "pt"})


def build(recipe: Recipe, out: Path, seed: int) -> None:
    """Pre-train one model and save it under `out/<name>`."""
    tokenizer = build_tokenizer(MAX_LENGTH)
    model = build_model(recipe, tokenizer, seed)
    rng = Random(f"{recipe.name} {seed}")
    for phase in recipe.phases:
        train_phase(model, tokenizer, phase, recipe.name, rng)
    save(model, tokenizer, out / recipe.name)


def run(description: str, recipes: Sequence[Recipe]) -> None:
    """The command line: pre-train each recipe's model, from the seed and into the folder that are asked for."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, help="folder that gets teacher/ and student/")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    # One thread: batches this small gain nothing from more, and the result then does not depend on the core count.
    torch.set_num_threads(1)
    for recipe in recipes:
        build(recipe, arguments.out, arguments.seed)
    print(f"Teacher and student are in {arguments.out}")


if __name__ == "__main__":
    run("Pre-train the demo's teacher and student.", (TEACHER, STUDENT))
