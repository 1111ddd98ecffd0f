"""Models and tokenizers: loaded from safetensors without remote code, saved whole or not at all."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from s2d.atomic import replace_folder
from s2d.errors import StageFailure
from s2d.plan.document import Plan
from s2d.plan.graph import BASE_MODELS
from s2d.plan.prompting import Prompting
from s2d.rollouts.prompting import prompted_once

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def load_tokenizer(name: str, revision: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer, padding on the left as generation needs; EOS stands in for a missing pad token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False, padding_side="left")
    except (OSError, ValueError) as err:
        raise StageFailure(f"The tokenizer of {name} cannot be loaded: {err}", code="model") from err
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def tokenizer_of(plan: Plan, model: str, place: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model of the plan, its chat template with what the plan adds to every prompt.

    Raises:
        StageFailure: code "model"; see `load_tokenizer`, or there is no chat template to add to.
    """
    tokenizer = load_tokenizer(place, revision_of(plan, model))
    # Models that the job made were saved with it.
    if model not in BASE_MODELS or plan.prompt == Prompting():
        return tokenizer
    if not isinstance(tokenizer.chat_template, str):
        raise StageFailure(f"The plan adds to every prompt, and {place} has no chat template to add to.", code="model")
    tokenizer.chat_template = prompted_once(tokenizer.chat_template, plan.prompt)
    return tokenizer


def load_model(name: str, *, dtype: str, device: str, revision: str | None = None) -> PreTrainedModel:
    """The causal language model `name`, weights in `dtype` on `device`.

    Raises:
        StageFailure: code "model"; missing, not safetensors, or in need of remote code.
    """
    try:
        model = AutoModelForCausalLM.from_pretrained(
            name, revision=revision, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError) as err:
        raise StageFailure(f"The model {name} cannot be loaded: {err}", code="model") from err
    return model.to(device)


def revision_of(plan: Plan, role: str) -> str | None:
    """The hub revision that the plan pins for a base model; models that the job made have none."""
    return {"base_teacher": plan.teacher.revision, "base_student": plan.student.revision}.get(role)


def save_model(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save the model, adapters merged, under `folder`; a folder of that name is always whole."""
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    # Training with checkpointed activations switches it off; whoever serves the model wants it.
    model.config.use_cache = True
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary, safe_serialization=True)
    tokenizer.save_pretrained(temporary)
    replace_folder(temporary, folder)


def copy_model(source: Path, target: Path) -> None:
    """Copy a saved model; a folder of the target's name is always whole."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(source, partial)
    replace_folder(partial, target)


def inference_device(device: str) -> str:
    return "cuda:0" if device == "cuda" else "cpu"
