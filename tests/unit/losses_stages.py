"""Trainers as the stages build them, on random models: a stage's own `run` makes the trainer, and is stopped there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from losses_reference import Sample
from losses_replay import Replay
from losses_samples import TOKENIZER, asked
from tiny import labels, plan_for
from transformers import Qwen3Config, Qwen3ForCausalLM

from s2d.data.rows import Message, Row, prompt_id
from s2d.data.split import ROLES, SplitReport
from s2d.plan.document import Plan
from s2d.plan.graph import Account
from s2d.rollouts.stored import RolloutStore, StoredRollout
from s2d.runner.layout import JobLayout
from s2d.runner.ledger import Ledger
from s2d.runner.task import ProcessId, StageTask
from s2d.stages import grpo, opd, warmup
from s2d.stages.runtime import StageRuntime

#: Removed when the process ends.
SCRATCH = TemporaryDirectory(prefix="s2d-losses-")
STAGES: dict[str, Any] = {"warmup": warmup, "opd": opd, "teacher_rl": grpo}


def _config(hidden: int) -> Qwen3Config:
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256}
    ids = {"bos_token_id": None, "eos_token_id": TOKENIZER.eos_token_id, "pad_token_id": TOKENIZER.pad_token_id}
    weights = {"initializer_range": 0.3, "tie_word_embeddings": True}
    return Qwen3Config(vocab_size=len(TOKENIZER), **sizes, **heads, **ids, **weights)


@cache
def models() -> Path:
    """A folder of random models, far from a uniform softmax.

    `student`, `teacher`, `moved` (a student that is elsewhere) and `near` (a student a little way off).
    """
    root = Path(SCRATCH.name) / "models"
    for seed, (name, hidden) in enumerate((("student", 16), ("teacher", 24), ("moved", 16))):
        torch.manual_seed(seed)
        Qwen3ForCausalLM(_config(hidden)).save_pretrained(root / name)
        TOKENIZER.save_pretrained(root / name)
    near = Qwen3ForCausalLM.from_pretrained(root / "student")
    with torch.no_grad():
        for parameter in near.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    near.save_pretrained(root / "near")
    return root


@cache
def exact(name: str) -> Any:
    """The model in float64, loaded apart from any trainer's."""
    return Qwen3ForCausalLM.from_pretrained(models() / name, dtype=torch.float64).eval()


@cache
def base_plan() -> Plan:
    folder = Path(SCRATCH.name)
    return plan_for(labels(folder / "labels.jsonl"), models=models())


def prepare(folder: Path, name: str, samples: Sequence[Sample], devices: int = 1, **changes: Any) -> Path:
    """A job's folder with the stage's plan, prompts and stored rollouts; `changes` are fields of the stage."""
    layout, plan = JobLayout(folder), base_plan()
    stage = plan.stage(name)
    # Gradients are compared as they are, so nothing may clip them.
    fixed = {"dtype": "float32", "optim": stage.optim.model_copy(update={"max_grad_norm": 1e9})}
    stages = tuple(one.model_copy(update={**fixed, **changes}) if one is stage else one for one in plan.stages)
    hardware = plan.hardware.model_copy(update={"devices": devices, "cpu_threads": 1})
    layout.data.mkdir(parents=True)
    layout.stage(name).mkdir(parents=True)
    layout.plan.write_text(plan.model_copy(update={"stages": stages, "hardware": hardware}).sealed().model_dump_json())
    _write_rows(layout, samples)
    return folder


def _write_rows(layout: JobLayout, samples: Sequence[Sample]) -> None:
    turns = {asked(one): (Message(role="user", content=asked(one)),) for one in samples}
    rows = {text: Row(id=prompt_id(turn), messages=list(turn), answer="0", line=1) for text, turn in turns.items()}
    lines = "".join(row.model_dump_json() + "\n" for row in rows.values())
    for role in ("prompts", "teacher_rl", "validation"):
        (layout.data / f"{role}.jsonl").write_text(lines)
    ids = [row.id for row in rows.values()]
    split = SplitReport(counts={}, sha256={}, ids={role: ids if role == "teacher_rl" else [] for role in ROLES})
    (layout.data / "split.json").write_text(split.model_dump_json())
    Ledger(layout.ledger).spend(Account("workflow", "teacher_rl"), "teacher_rl", ids)
    stored = [StoredRollout(row_id=rows[asked(s)].id, ids=list(s.completion), truncated=False) for s in samples]
    store = RolloutStore(layout.rollouts("teacher_rollouts"))
    store.root.mkdir(parents=True)
    store.write(0, stored)


class _MadeError(Exception):
    """Carries the trainer out of the stage."""


def trainer_of(folder: Path, name: str, samples: Sequence[Sample] = ()) -> Any:
    """The trainer of stage `name` in a job that `prepare` made, with `samples` for its rollouts and their rewards.

    Its `replay` says which rollouts come where it would generate; the warmup reads its stored ones by itself.
    """
    replay = Replay(samples)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(STAGES[name], "train", _caught))
        stack.enter_context(patch.object(grpo, "GradingPool", contextlib.nullcontext))
        stack.enter_context(patch.object(grpo, "VerifierReward", lambda _: replay))
        try:
            STAGES[name].run(StageRuntime(_task(folder, name)))
        except _MadeError as made:
            (trainer,) = made.args
    replay.take_over(trainer)
    return trainer


def _caught(_runtime: StageRuntime, trainer: Any, **_: Any) -> None:
    raise _MadeError(trainer)


def _task(folder: Path, name: str) -> StageTask:
    stage = base_plan().stage(name)
    where = {stage.starts_from: str(models() / "student")}
    if name != "teacher_rl":
        where[stage.teacher] = str(models() / "teacher")
    return StageTask(job_dir=folder, stage=name, attempt=1, models=where, supervisor=ProcessId(pid=1, started=0))
