"""The grids: one stage a cell. `GRID` lets one item of memory after the other stand out; `TIMED` has many sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes; heads are 64 wide."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int


HEAD_DIM = 64
NARROW = Shape(layers=16, hidden=128, heads=2, kv_heads=2, intermediate=512)
FLAT = Shape(layers=4, hidden=256, heads=4, kv_heads=4, intermediate=768)
MIDDLE = Shape(layers=8, hidden=512, heads=8, kv_heads=4, intermediate=1536)
LARGE = Shape(layers=12, hidden=768, heads=12, kv_heads=4, intermediate=2304)
WIDE = Shape(layers=2, hidden=1024, heads=16, kv_heads=8, intermediate=4096)

Kind = Literal["teacher_rl", "teacher_rollouts", "warmup", "opd", "student_rl", "evaluate"]
GROUP = 4
VALIDATION = 4


@dataclass(frozen=True)
class Cell:
    """A stage's steps have `sequences` sequences, `micro` of them in a forward pass; other stages draw as many."""

    name: str
    stage: Kind
    teacher: Shape
    student: Shape
    vocabulary: int
    prompt: int
    completion: int
    sequences: int
    micro: int = 1
    family: Literal["qwen3", "llama"] = "qwen3"
    tied: bool = True
    lora: bool = False
    checkpointing: bool = False
    top_p: float = 1.0
    steps: int = 2

    @property
    def labels(self) -> dict[str, int]:
        return {"teacher_rl": 16, "student_rl": 16, "validation": VALIDATION, "test": self.sequences}

    @property
    def unlabeled(self) -> int:
        return 2 * self.sequences

    def options(self) -> dict[str, Any]:
        """The plan request's fields beside models and file."""
        return {
            "on_gate_failure": "continue",
            "max_prompt_tokens": self.prompt,
            "max_completion_tokens": self.completion,
            "hardware": {"device": "cpu", "cpu_threads": 1},
            "labels": self.labels,
            "lora": self.lora,
            "gates": {"c1": {"k": 1}, "c2": {"prompts": VALIDATION}},
            "stages": {self.stage: self._stage()},
        }

    def _stage(self) -> dict[str, Any]:
        if self.stage == "teacher_rollouts":
            return {"prompts": self.sequences, "batch_size": self.sequences}
        if self.stage == "evaluate":
            return {"k": 1, "batch_size": self.sequences, "top_p": self.top_p}
        training = {
            "steps": self.steps,
            "per_device_batch_size": self.micro,
            "gradient_checkpointing": self.checkpointing,
        }
        if self.stage in ("teacher_rl", "student_rl"):
            return {**training, "prompts_per_step": self.sequences // GROUP, "group_size": GROUP}
        most = {"max_steps": self.steps} if self.stage == "warmup" else {}
        return {**training, **most, "sequences_per_step": self.sequences}


GRID = (
    # Weights, gradients, optimizer.
    Cell("states", "teacher_rl", LARGE, FLAT, 8192, prompt=16, completion=8, sequences=4, micro=4),
    Cell("states accumulated", "teacher_rl", LARGE, FLAT, 8192, prompt=16, completion=8, sequences=8, micro=2),
    Cell("states wide", "teacher_rl", WIDE, FLAT, 16_384, prompt=16, completion=16, sequences=4, micro=4),
    Cell("states untied", "student_rl", MIDDLE, MIDDLE, 32_768, 16, 8, 4, 4, family="llama", tied=False),
    Cell("states adapters", "teacher_rl", LARGE, FLAT, 8192, 16, 8, sequences=4, micro=4, lora=True),
    Cell("teacher beside, warmup", "warmup", LARGE, MIDDLE, 8192, prompt=16, completion=16, sequences=8, micro=4),
    Cell("teacher beside, opd", "opd", LARGE, MIDDLE, 8192, prompt=16, completion=16, sequences=8, micro=4),
    Cell("teacher beside, adapters", "opd", LARGE, MIDDLE, 8192, 16, 16, sequences=8, micro=4, lora=True),
    # Activations.
    Cell("activations", "teacher_rl", NARROW, FLAT, 2048, prompt=32, completion=128, sequences=16, micro=16),
    Cell("activations accumulated", "teacher_rl", NARROW, FLAT, 2048, 32, 128, sequences=32, micro=16),
    Cell("activations checkpointed", "teacher_rl", NARROW, FLAT, 2048, 32, 128, 32, 32, checkpointing=True),
    Cell("activations adapters", "teacher_rl", NARROW, FLAT, 2048, 32, 128, 16, 16, lora=True),
    Cell("adapters checkpointed", "student_rl", NARROW, NARROW, 2048, 32, 128, 32, 32, lora=True, checkpointing=True),
    Cell("activations llama", "student_rl", MIDDLE, MIDDLE, 4096, 64, 32, sequences=16, micro=16, family="llama"),
    Cell("activations opd", "opd", MIDDLE, NARROW, 2048, prompt=32, completion=96, sequences=16, micro=16),
    Cell("activations wide", "warmup", WIDE, WIDE, 2048, prompt=32, completion=32, sequences=32, micro=32),
    # Attention masks grow with the square of the length.
    Cell("long", "teacher_rl", NARROW, FLAT, 2048, prompt=400, completion=112, sequences=4, micro=4),
    Cell("long checkpointed", "teacher_rl", NARROW, FLAT, 2048, 400, 112, sequences=8, micro=8, checkpointing=True),
    # Tiles of logits.
    Cell("vocabulary", "teacher_rl", FLAT, FLAT, 65_536, prompt=16, completion=64, sequences=16, micro=16),
    Cell("vocabulary opd", "opd", FLAT, FLAT, 65_536, prompt=16, completion=48, sequences=16, micro=16),
    Cell("vocabulary warmup", "warmup", MIDDLE, FLAT, 32_768, 16, 48, sequences=16, micro=16, checkpointing=True),
    Cell("vocabulary adapters", "student_rl", FLAT, FLAT, 65_536, 16, 64, 16, 16, family="llama", lora=True),
    # Generation alone: weights, key-value cache, logits of one position.
    Cell("weights", "teacher_rollouts", LARGE, FLAT, 32_768, prompt=16, completion=8, sequences=4),
    Cell("cache", "teacher_rollouts", NARROW, FLAT, 2048, prompt=32, completion=160, sequences=64),
    Cell("prefill", "teacher_rollouts", MIDDLE, FLAT, 2048, prompt=256, completion=8, sequences=32),
    Cell("evaluation", "evaluate", FLAT, FLAT, 65_536, prompt=16, completion=8, sequences=256, top_p=0.8),
    Cell("evaluation untied", "evaluate", MIDDLE, FLAT, 32_768, 16, 8, 16, family="llama", tied=False, top_p=0.8),
    # The cache beside optimizer states, in small micro-batches.
    Cell("cache in training", "teacher_rl", NARROW, FLAT, 2048, prompt=32, completion=96, sequences=64, micro=4),
)

TIMED = (
    Cell("rl tiny", "student_rl", FLAT, FLAT, 2048, prompt=16, completion=16, sequences=16, micro=16, steps=12),
    Cell("rl deep", "teacher_rl", NARROW, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=6),
    Cell("rl middle", "teacher_rl", MIDDLE, FLAT, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=6),
    Cell("rl wide", "teacher_rl", WIDE, FLAT, 4096, prompt=32, completion=24, sequences=16, micro=16, steps=5),
    Cell("rl large", "teacher_rl", LARGE, FLAT, 4096, prompt=32, completion=24, sequences=8, micro=8, steps=4),
    Cell("rl adapters", "teacher_rl", MIDDLE, FLAT, 4096, 32, 32, 16, 8, lora=True, steps=6),
    Cell("rl checkpointed", "teacher_rl", MIDDLE, FLAT, 4096, 32, 32, 16, 8, checkpointing=True, steps=6),
    Cell("warmup tiny", "warmup", MIDDLE, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=12),
    Cell("warmup middle", "warmup", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=5),
    Cell("warmup wide", "warmup", WIDE, MIDDLE, 4096, prompt=32, completion=48, sequences=16, micro=16, steps=5),
    Cell("opd tiny", "opd", MIDDLE, FLAT, 2048, prompt=16, completion=32, sequences=16, micro=16, steps=10),
    Cell("opd middle", "opd", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=16, micro=8, steps=5),
    Cell("opd deep", "opd", MIDDLE, NARROW, 2048, prompt=32, completion=48, sequences=16, micro=16, steps=5),
    Cell("rollouts middle", "teacher_rollouts", MIDDLE, FLAT, 4096, prompt=32, completion=96, sequences=64),
    Cell("rollouts deep", "teacher_rollouts", NARROW, FLAT, 2048, prompt=32, completion=160, sequences=48),
    Cell("rollouts large", "teacher_rollouts", LARGE, FLAT, 4096, prompt=32, completion=64, sequences=32),
    Cell("evaluation", "evaluate", MIDDLE, FLAT, 4096, prompt=32, completion=48, sequences=64, top_p=0.8),
    Cell("evaluation large", "evaluate", LARGE, MIDDLE, 4096, prompt=32, completion=32, sequences=32, top_p=0.8),
)
