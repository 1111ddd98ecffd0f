"""A mismatched pair is refused before anything is trained, with every difference named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from plan_pair import policy, write, write_pair

from s2d.errors import IncompatiblePair, InvalidPlan
from s2d.plan.compatibility import check_models, check_pair
from s2d.plan.models import ModelPolicy, read_model


def edit(folder: Path, name: str, **changes: Any) -> None:
    write(folder, name, json.loads((folder / name).read_text()) | changes)


def test_an_equal_pair_passes_without_a_warning(tmp_path: Path) -> None:
    assert check_pair(*write_pair(tmp_path)) == ()


@pytest.mark.parametrize(
    ("file", "changes", "named"),
    [
        ("tokenizer.json", {"model": {"vocab": {"x": 0}}}, "vocabulary"),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 61, "content": "<pad>"}, {"id": 60, "content": "<end>"}]},
            "vocabulary",
        ),
        ("tokenizer_config.json", {"bos_token": "<s>"}, "special tokens"),
        ("generation_config.json", {"eos_token_id": [61, 60]}, "end-of-sequence ids"),
        ("generation_config.json", {"pad_token_id": 61}, "padding ids"),
        ("config.json", {"vocab_size": 272}, "logits"),
    ],
)
def test_each_difference_is_found(tmp_path: Path, file: str, changes: dict[str, Any], named: str) -> None:
    teacher, student = write_pair(tmp_path)
    edit(student, file, **changes)
    with pytest.raises(IncompatiblePair) as caught:
        check_pair(teacher, student)
    assert [line.split(":")[0] for line in caught.value.details["differences"]] == [named]


def test_all_differences_are_named_at_once(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    edit(student, "config.json", vocab_size=272)
    edit(student, "generation_config.json", eos_token_id=3)
    write(student, "chat_template.jinja", "{{ messages[0]['content'] }}")
    with pytest.raises(IncompatiblePair) as caught:
        check_pair(teacher, student)
    assert len(caught.value.details["differences"]) == 3


def test_templates_are_compared_by_what_they_render(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    text = (student / "chat_template.jinja").read_text()
    marked = text.replace("{{ m['content'] }}", "{% generation %}{{ m['content'] }}{% endgeneration %}")
    (student / "chat_template.jinja").unlink()
    edit(student, "tokenizer_config.json", chat_template=[{"name": "default", "template": marked}])
    assert check_pair(teacher, student) == ()


def test_a_template_cannot_leave_the_sandbox(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    write(student, "chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidPlan, match="cannot be rendered"):
        check_pair(teacher, student)


def test_base_models_may_both_lack_a_template_but_not_one_of_them(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    (student / "chat_template.jinja").unlink()
    with pytest.raises(IncompatiblePair, match="chat template"):
        check_pair(teacher, student)
    (teacher / "chat_template.jinja").unlink()
    assert [warning.code for warning in check_pair(teacher, student)] == ["no_chat_template"]


def test_one_model_twice_is_refused_and_a_small_teacher_is_warned_of(tmp_path: Path) -> None:
    teacher, student = (read_model(str(path), policy(tmp_path)) for path in write_pair(tmp_path))
    with pytest.raises(IncompatiblePair, match="same model"):
        check_models(teacher, teacher, policy(tmp_path))
    assert [warning.code for warning in check_models(student, teacher, policy(tmp_path))] == ["teacher_smaller"]


@pytest.mark.parametrize(
    ("teacher", "student", "named"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen2.5-1.5B-Instruct", "family"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "logits"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "family"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", None),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", None),
    ],
)
def test_catalog_pairs_are_compared_by_family(
    teacher: str, student: str, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    offline = ModelPolicy(allow_hub=False)
    pair = read_model(teacher, offline), read_model(student, offline)
    if named is None:
        assert [warning.code for warning in check_models(*pair, offline)] == ["pair_not_checked"]
        return
    with pytest.raises(IncompatiblePair, match=named):
        check_models(*pair, offline)


def test_a_folder_without_a_fast_tokenizer_is_named(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    (student / "tokenizer.json").unlink()
    with pytest.raises(InvalidPlan, match=r"tokenizer\.json"):
        check_pair(teacher, student)


def cache(root: Path, name: str, files: Path) -> Path:
    """A hub cache that holds the files of `files` as `name`."""
    repository = root / f"models--{name.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    return repository / "snapshots" / "abc"


def test_catalog_models_in_the_cache_are_checked_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    names = ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B")
    offline = ModelPolicy(allow_hub=False)
    teacher, student = (read_model(name, offline) for name in names)
    folders = [cache(tmp_path / "hub", name, path) for name, path in zip(names, write_pair(tmp_path), strict=True)]
    assert check_models(teacher, student, offline) == ()
    edit(folders[1], "tokenizer_config.json", eos_token="<pad>")
    with pytest.raises(IncompatiblePair, match="special tokens"):
        check_models(teacher, student, offline)
    # Half a download is not taken for a difference.
    (folders[1] / "generation_config.json").unlink()
    assert [warning.code for warning in check_models(teacher, student, offline)] == ["pair_not_checked"]
