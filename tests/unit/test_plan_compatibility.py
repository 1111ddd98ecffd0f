"""A mismatched pair is refused before anything is trained, with every difference named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from plan_pair import config, policy, write, write_model, write_pair

from s2d.errors import IncompatiblePair, InvalidPlan
from s2d.plan.compatibility import check_models, check_pair
from s2d.plan.models import ModelPolicy, read_model, same_weights
from s2d.plan.prompting import Prompting

OFFLINE = ModelPolicy(allow_hub=False)


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


def test_one_model_is_refused_under_any_spelling_and_its_copy_is_warned_of(tmp_path: Path) -> None:
    teacher, _ = write_pair(tmp_path)
    (tmp_path / "link").symlink_to(teacher)
    shutil.copytree(teacher, tmp_path / "copy")
    mine = policy(tmp_path)
    one = read_model(str(teacher), mine)
    for spelling in (tmp_path / "link", tmp_path / "link" / ".." / "teacher", f"{teacher}/"):
        with pytest.raises(IncompatiblePair, match="same model"):
            check_models(one, read_model(str(spelling), mine), mine)
    copy = read_model(str(tmp_path / "copy"), mine)
    assert [warning.code for warning in check_models(one, copy, mine)] == ["same_weights"]
    (tmp_path / "copy" / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{ ")
    assert check_models(one, copy, mine) == ()


def test_large_weights_are_told_apart_by_their_middle_and_their_end(tmp_path: Path) -> None:
    head, size = (2).to_bytes(8, "little") + b"{}", 400_000
    for name, place in (("one", None), ("two", None), ("middle", size // 2), ("end", size - 1)):
        content = bytearray(head + bytes(size - len(head)))
        if place is not None:
            content[place] = 1
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert not same_weights(tmp_path / "one", tmp_path / "middle")
    assert not same_weights(tmp_path / "one", tmp_path / "end")
    (tmp_path / "none").mkdir()
    assert not same_weights(tmp_path / "none", tmp_path / "none")


def test_one_hub_model_is_refused_in_any_case_and_under_two_ids() -> None:
    model = read_model("Qwen/Qwen3-8B", OFFLINE)
    for other in (
        model.model_copy(update={"name": "qwen/QWEN3-8b"}),
        model.model_copy(update={"name": "someone/else", "revision": "abc"}),
    ):
        with pytest.raises(IncompatiblePair, match="same model"):
            check_models(model.model_copy(update={"revision": "abc"}), other, OFFLINE)


def test_templates_are_compared_with_what_the_plan_adds(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    text = (student / "chat_template.jinja").read_text()
    write(student, "chat_template.jinja", text + "{% if enable_thinking is false %}<think></think>{% endif %}")
    assert check_pair(teacher, student) == ()
    assert check_pair(teacher, student, Prompting(template={"enable_thinking": True})) == ()
    with pytest.raises(IncompatiblePair, match="chat template"):
        check_pair(teacher, student, Prompting(template={"enable_thinking": False}))
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + text
    for folder in (teacher, student):
        write(folder, "chat_template.jinja", refusing)
    assert check_pair(teacher, student) == ()
    with pytest.raises(InvalidPlan, match="no system") as caught:
        check_pair(teacher, student, Prompting(system="Be brief."))
    assert caught.value.param == "teacher"


def test_additions_need_a_template_to_go_to(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    for folder in (teacher, student):
        (folder / "chat_template.jinja").unlink()
    with pytest.raises(InvalidPlan, match="neither model has one") as caught:
        check_pair(teacher, student, Prompting(suffix=" Think."))
    assert caught.value.param == "prompt"


@pytest.mark.parametrize(
    ("file", "changes", "why"),
    [
        ("generation_config.json", {"eos_token_id": [61, "x"]}, "neither a number"),
        ("generation_config.json", {"pad_token_id": {"a": 1}}, "neither a number"),
        ("tokenizer.json", {"model": {"vocab": {"x": [1]}}}, "no vocabulary"),
        ("tokenizer.json", {"model": None}, "no vocabulary"),
        ("tokenizer_config.json", {"chat_template": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"}, "rendered"),
        ("tokenizer_config.json", {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"}, "rendered"),
        ("tokenizer_config.json", {"chat_template": {"a": "b"}}, "rendered"),
    ],
)
def test_files_that_make_no_sense_say_so_and_whose_they_are(
    tmp_path: Path, file: str, changes: dict[str, Any], why: str
) -> None:
    teacher, student = write_pair(tmp_path)
    (student / "chat_template.jinja").rename(student / "away")
    edit(student, file, **changes)
    with pytest.raises(InvalidPlan, match=why) as caught:
        check_pair(teacher, student)
    assert caught.value.param == "student"


def test_tokens_that_the_logits_do_not_reach_are_refused_after_what_differs(tmp_path: Path) -> None:
    teacher, student = write_pair(tmp_path)
    far = {"added_tokens": [{"id": 264, "content": "<far>"}]}
    edit(student, "tokenizer.json", **far)
    with pytest.raises(IncompatiblePair, match="vocabulary"):
        check_pair(teacher, student)
    edit(teacher, "tokenizer.json", **far)
    with pytest.raises(InvalidPlan, match="logits end at 264"):
        check_pair(teacher, student)


def test_a_pair_with_half_of_its_files_here_is_checked_when_the_job_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = write_model(tmp_path / "mine", config(64, 2, 4, 128, vocab_size=151_936))
    teacher, student = read_model("Qwen/Qwen3-8B", OFFLINE), read_model(str(folder), policy(tmp_path))
    (warning,) = check_models(teacher, student, OFFLINE)
    assert warning.code == "pair_not_checked"
    assert "Qwen/Qwen3-8B are not" in warning.message
    assert "only sizes were compared" in warning.message
    with pytest.raises(IncompatiblePair, match=r"Of qwen2\.5-instruct go together"):
        check_models(read_model("Qwen/Qwen2.5-7B-Instruct", OFFLINE), student, OFFLINE)


def test_a_family_with_two_widths_says_which_of_it_go_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pair = (read_model(f"Qwen/Qwen2.5-Math-{size}-Instruct", OFFLINE) for size in ("7B", "1.5B"))
    with pytest.raises(IncompatiblePair) as caught:
        check_models(*pair, OFFLINE)
    assert "teacher 152,064 wide, student 151,936, and the loss compares" in caught.value.message
    assert "Qwen/Qwen2.5-Math-7B-Instruct, Qwen/Qwen2.5-Math-72B-Instruct (152,064)" in caught.value.message


@pytest.mark.parametrize(
    ("teacher", "student", "named"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen2.5-1.5B-Instruct", "family"),
        ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-1.5B-Instruct", "logits"),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", "family"),
        ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", None),
        ("Qwen/Qwen3-32B", "Qwen/Qwen3-0.6B", None),
        ("Qwen/Qwen3-4B-Instruct-2507", "Qwen/Qwen3-1.7B", None),
        ("Qwen/Qwen3-4B-Thinking-2507", "Qwen/Qwen3-1.7B", "family"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-1.7B-Base", "family"),
        ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-0.5B-Instruct", "family"),
        ("Qwen/Qwen2.5-Math-7B", "Qwen/Qwen2.5-7B", "family"),
        ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.2-1B", None),
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Meta-Llama-3-8B-Instruct", "family"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "meta-llama/Llama-3.1-8B-Instruct", "family"),
    ],
)
def test_catalog_pairs_are_compared_by_family(
    teacher: str, student: str, named: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    pair = read_model(teacher, OFFLINE), read_model(student, OFFLINE)
    if named is None:
        assert [warning.code for warning in check_models(*pair, OFFLINE)] == ["pair_not_checked"]
        return
    with pytest.raises(IncompatiblePair, match=named):
        check_models(*pair, OFFLINE)


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
    teacher, student = (read_model(name, OFFLINE) for name in names)
    folders = [cache(tmp_path / "hub", name, path) for name, path in zip(names, write_pair(tmp_path), strict=True)]
    assert check_models(teacher, student, OFFLINE) == ()
    edit(folders[1], "tokenizer_config.json", eos_token="<pad>")
    with pytest.raises(IncompatiblePair, match="special tokens"):
        check_models(teacher, student, OFFLINE)
    # Half a download is not taken for a difference.
    (folders[1] / "generation_config.json").unlink()
    assert [warning.code for warning in check_models(teacher, student, OFFLINE)] == ["pair_not_checked"]
