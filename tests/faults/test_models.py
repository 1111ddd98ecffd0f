"""Pairs that do not match (row 15), and models that nobody may load (row 17).

The models are folders that a user could have made; the plan is asked for over HTTP, on each database, and where a
folder changes between plan and job, a real worker meets it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from faults_testing import OPTIONS, Fault

from api.problems import MEDIA_TYPE, Problem
from benchmarks.rig import DEMO
from s2d.errors import StageFailure

Change = Callable[[Path], object]


def edit(name: str, **changes: Any) -> Change:
    """Change these fields of a JSON file, or make one of them."""

    def apply(folder: Path) -> None:
        path = folder / name
        found = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(found | changes))

    return apply


def rename_token(folder: Path) -> None:
    for path in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        path.write_text(path.read_text().replace('"<|user|>"', '"<|human|>"'))


def other_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[-1]['content'] }}")


#: What differs, by the name that it has in the answer.
DIFFERENCES: dict[str, tuple[str, Change]] = {
    "a token has another name": ("vocabulary", rename_token),
    "a token that only the config adds": (
        "vocabulary",
        edit("tokenizer_config.json", added_tokens_decoder={"262": {"content": "<tool>"}}),
    ),
    "a token that only another file adds": ("vocabulary", edit("added_tokens.json", **{"<tool>": 262})),
    "a special token without a name": ("vocabulary", edit("tokenizer_config.json", extra_special_tokens=["<tool>"])),
    "another end token": ("special tokens", edit("tokenizer_config.json", eos_token="<|pad|>")),
    "a beginning": ("special tokens", edit("tokenizer_config.json", bos_token="<|user|>")),
    "two ends": ("end-of-sequence ids", edit("generation_config.json", eos_token_id=[256, 260])),
    "other padding": ("padding ids", edit("generation_config.json", pad_token_id=260)),
    "wider logits": ("logits", edit("config.json", vocab_size=320)),
    "another template": ("chat template", other_template),
    "no template": ("chat template", lambda folder: (folder / "chat_template.jinja").unlink()),
}


def models(fault: Fault) -> Path:
    return fault.rig.settings.state_dir / "models"


def student(fault: Fault, name: str, *changes: Change) -> Path:
    """A copy of the demo's student with these changes."""
    folder = models(fault) / name
    shutil.copytree(models(fault) / "student", folder)
    for change in changes:
        change(folder)
    return folder


def plan(fault: Fault, **fields: Any) -> httpx.Response:
    pair = {"teacher": str(models(fault) / "teacher"), "student": str(models(fault) / "student")}
    return fault.client.http.post("/plans", json={**OPTIONS, **pair, "training_file": fault.file, **fields})


def refused(response: httpx.Response, code: str) -> Problem:
    """The answer is a 400 with this code, in the one shape."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    told = Problem.model_validate_json(response.content)
    assert (response.status_code, told.status, told.code) == (400, 400, code), response.text
    assert (told.error.message, told.error.code) == (told.detail, code)
    return told


@pytest.mark.fault(15)
def test_a_pair_that_differs_anywhere_is_refused_with_every_difference(fault: Fault) -> None:
    for number, (what, (named, change)) in enumerate(DIFFERENCES.items()):
        told = refused(plan(fault, student=str(student(fault, str(number), change))), "incompatible_pair")
        assert told.details is not None
        assert [line.split(":")[0] for line in told.details["differences"]] == [named], what
        assert told.error.param == "student"
    all_at_once = (
        "a token has another name",
        "another end token",
        "two ends",
        "other padding",
        "wider logits",
        "another template",
    )
    changes = [DIFFERENCES[what] for what in all_at_once]
    told = refused(
        plan(fault, student=str(student(fault, "all", *(change for _, change in changes)))), "incompatible_pair"
    )
    assert told.details is not None
    assert [line.split(":")[0] for line in told.details["differences"]] == [named for named, _ in changes]
    assert all(line in told.detail for line in told.details["differences"])
    assert "1 tokens of the teacher and 1 of the student have no equal, such as '<|" in told.detail
    # A model that is the same in other words is not refused, and nothing of the refused ones was kept.
    same = student(fault, "same", edit("tokenizer_config.json", added_tokens_decoder={"260": {"content": "<|end|>"}}))
    assert plan(fault, student=str(same)).status_code == 201
    assert len(fault.client.http.get("/plans").json()["data"]) == 1


@pytest.mark.fault(15)
@pytest.mark.fault(17)
def test_a_folder_that_changes_between_plan_and_job_is_refused_before_a_label_is_spent(fault: Fault) -> None:
    def pickled(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def out_of_the_root(folder: Path) -> None:
        shutil.move(folder, fault.rig.settings.state_dir / "elsewhere")
        folder.symlink_to(fault.rig.settings.state_dir / "elsewhere")

    late: dict[str, tuple[Change, str]] = {
        "mismatch": (lambda folder: (rename_token(folder), other_template(folder)), "; chat template: teacher"),
        "another": (edit("config.json", hidden_act="relu"), "another model now than when the plan was made"),
        "pickled": (pickled, "no safetensors weights"),
        "code": (edit("config.json", auto_map={"AutoModel": "code.Model"}), "code of its own"),
        "outside": (out_of_the_root, "outside the folders"),
    }
    jobs = {}
    for name in late:
        made = plan(fault, student=str(student(fault, name)))
        jobs[name] = fault.client.start(made.json()["id"], fault.file)
    for name, (change, _) in late.items():
        change(models(fault) / name)
    fault.rig.start_worker()
    for name, (_, says) in late.items():
        error = fault.client.wait(jobs[name], "failed")["error"]
        assert (error["code"], error["stage"]) == ("model", None), error
        assert says in error["message"]
        assert fault.client.http.get(f"/jobs/{jobs[name]}/labels").json()["data"] == []
        assert fault.states(jobs[name]) == ["queued", "running", "failed"]
        assert not (fault.layout(jobs[name]).root / "stages").exists()
    error = fault.client.job(jobs["mismatch"])["error"]
    assert "vocabulary: 1 tokens of the teacher and 1 of the student have no equal" in error["message"]


@pytest.mark.fault(17)
def test_no_path_leads_out_of_the_allowed_folders_nor_tells_what_is_there(fault: Fault, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(models(fault) / "student", outside)
    root = models(fault)
    (root / "link").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    names = {
        str(outside),
        str(root / ".." / ".." / "outside"),
        f"{root}/student/../../../outside",
        "../outside",
        "../../outside/nothing",
        "./student",
        "~/student",
        "~root",
        "~nobody-of-this-name/student",
        "/etc",
        "//etc/passwd",
        "/proc/self/root/etc",
        "/nothing/at/all",
        "C:\\models\\student",
        str(root / "link"),
        str(root / "link" / "."),
        str(root / "circle"),
        f"{root}/stu\0dent",
        f"{root}/{'a' * 300}",
    }
    for role in ("teacher", "student"):
        told = {name: refused(plan(fault, **{role: name}), "model_refused") for name in names}
        assert {one.error.param for one in told.values()} == {role}
        assert {one.detail.removeprefix(repr(name)) for name, one in told.items()} == {
            " is outside the folders that models may be read from."
        }
    # A name without a folder's look is one of the hub's, which this service does not ask.
    for name in ("a" * 300, "a\0b", "student", "hub/..", "file:///etc", "Qwen/Qwen3-8B\0"):
        refused(plan(fault, teacher=name), "invalid_plan")
    assert fault.client.http.get("/plans").json()["data"] == []


def linked(name: str) -> Change:
    """The file lies outside the root, and a link to it inside."""

    def apply(folder: Path) -> None:
        away = folder.parents[1] / f"away-{name}"
        if (folder / name).exists():
            (folder / name).rename(away)
        else:
            away.write_text("{}")
        (folder / name).symlink_to(away)

    return apply


def weights_of(shard: str) -> Change:
    """Weights in several files, one of which is called this."""

    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
        shards = {"model.norm.weight": "model-00001-of-00002.safetensors", "model.embed_tokens.weight": shard}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))

    return apply


def pickled_as(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(pickle.dumps({"model.norm.weight": [0.0] * 48}))

    return apply


#: How a folder would have another file, or code, loaded than what may be; and what the refusal says.
TRICKS: dict[str, tuple[Change, str]] = {
    "pickled weights": (pickled_as("pytorch_model.bin"), "pickled weights can run code"),
    "pickled weights by another name": (pickled_as("model.safetensors"), "is no safetensors file"),
    "a shard in a folder above": (weights_of("../../outside/model.safetensors"), "in the same folder"),
    "an absolute shard": (weights_of("/etc/passwd"), "in the same folder"),
    "a pickled shard": (weights_of("pytorch_model.bin"), "in the same folder"),
    "a pickled adapter": (edit("adapter_config.json", peft_type="LORA"), "adapter"),
    "weights named in the config": (
        edit("config.json", transformers_weights="adapter_model.bin"),
        "transformers_weights",
    ),
    "code for the model": (edit("config.json", auto_map={"AutoModelForCausalLM": "code.Model"}), "auto_map"),
    "code for the tokenizer": (
        edit("tokenizer_config.json", auto_map={"AutoTokenizer": ["code.Tok", None]}),
        "auto_map",
    ),
    **{
        f"{name} is a link": (linked(name), "links to a place outside")
        for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "added_tokens.json")
    },
}


@pytest.mark.fault(17)
def test_pickles_links_and_code_in_a_models_folder_are_refused(fault: Fault) -> None:
    for number, (trick, (change, says)) in enumerate(TRICKS.items()):
        folder = student(fault, f"trick-{number}", change)
        told = refused(plan(fault, student=str(folder)), "model_refused")
        assert says in told.detail, trick
        assert told.error.param == "student"
    # Files that nobody can read are the request's fault and not the service's.
    os.mkfifo(student(fault, "pipe", lambda folder: (folder / "tokenizer.json").unlink()) / "tokenizer.json")
    unreadable: dict[str, Change] = {
        "deep": lambda folder: (folder / "config.json").write_text("[" * 100_000),
        "deeper": lambda folder: (folder / "tokenizer.json").write_text("[" * 100_000),
        "latin": lambda folder: (folder / "chat_template.jinja").write_bytes(b"caf\xe9"),
        "large": lambda folder: (folder / "config.json").write_text(" " * (2 << 20)),
        "escape": lambda folder: (folder / "chat_template.jinja").write_text(
            "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        ),
    }
    for name, change in unreadable.items():
        student(fault, name, change)
    for name in ("pipe", *unreadable):
        refused(plan(fault, student=str(models(fault) / name)), "invalid_plan")
    # Weights in several files are taken as long as they are where they belong.
    assert (
        plan(fault, student=str(student(fault, "shards", weights_of("model-00001-of-00002.safetensors")))).status_code
        == 201
    )


class Canary:
    """Whoever unpickles it leaves a file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._path,))


@pytest.mark.fault(17)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_stage_unpickles_no_weights_whatever_they_are_called(tmp_path: Path, name: str) -> None:
    """What comes to lie in a folder after the planner has looked at it."""
    from safetensors import SafetensorError

    from s2d.stages.models import load_model

    folder = tmp_path / "model"
    shutil.copytree(DEMO / "student", folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Canary(tmp_path / "unpickled")))
    with pytest.raises((StageFailure, SafetensorError)):
        load_model(str(folder), dtype="float32", device="cpu")
    assert not (tmp_path / "unpickled").exists()
    pickle.loads((folder / name).read_bytes())
    assert (tmp_path / "unpickled").exists(), "the canary itself is alive"
