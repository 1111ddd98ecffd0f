"""The demo's task, tokenizer and stored pair."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from s2d.demo import pretrain
from s2d.demo.settings import ASSETS
from s2d.demo.task import Mixture, completion, problems, results, write_jsonl
from s2d.demo.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(1024)


def test_results_go_from_left_to_right_without_precedence() -> None:
    assert results("4*9+3*0*3*9=") == [6, 9, 0, 0, 0]
    assert results("1+2*3*4+5*6=") == [3, 9, 6, 1, 6]


def test_problems_are_unique_repeatable_and_keep_clear_of_excluded_ones() -> None:
    first = problems(300, seed=1)
    assert first == problems(300, seed=1) != problems(300, seed=2)
    assert len({problem.text for problem in first}) == 300
    excluded = {problem.text for problem in first[:200]}
    assert not excluded & {problem.text for problem in problems(300, seed=1, exclude=excluded)}


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (Mixture(1, 0, full_slip=0, half_slip=0), ";6;9;0;0;0\\boxed{0}"),
        (Mixture(0, 1, full_slip=0, half_slip=0), ";9;0\\boxed{0}"),
        (Mixture(0, 0, full_slip=1, half_slip=1), "\\boxed{0}"),
    ],
)
def test_each_style_without_slips_is_the_right_working(mixture: Mixture, expected: str) -> None:
    assert completion("4*9+3*0*3*9=", mixture, Random(0)) == expected


def test_slips_come_as_often_as_asked_and_the_working_goes_on_from_them() -> None:
    mixture, rng = Mixture(1, 0, full_slip=0.2, half_slip=0), Random(0)
    texts = [completion("1+1+1+1+1+1=", mixture, rng) for _ in range(4000)]
    wrong = 0
    for text in texts:
        written = [1, *map(int, text.split("\\")[0].split(";")[1:])]
        wrong += sum((b - a) % 10 != 1 for a, b in pairwise(written))
        assert text.endswith(f"\\boxed{{{written[-1]}}}")
    assert wrong / (5 * len(texts)) == pytest.approx(0.2, abs=0.02)


def test_jsonl_has_labeled_rows_first_and_no_answer_in_the_rest(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.jsonl", n_labeled=3, n_unlabeled=2, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [sorted(row) for row in rows] == [["answer", "problem"]] * 3 + [["problem"]] * 2


@given(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda text: "<|" not in text))
def test_any_text_is_tokenised_without_loss(text: str) -> None:
    tokenizer = build_tokenizer(1024)
    assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_a_prompt_is_a_prefix_of_the_whole_chat(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "4*9="}, {"role": "assistant", "content": "\\boxed{6}"}]
    prompt = tokenizer.apply_chat_template(chat[:1], add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert whole[: len(prompt)] == prompt
    assert len(prompt) == 6
    assert whole[-1] == tokenizer.eos_token_id


def test_the_stored_pair_is_small_and_shares_its_tokenizer() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4 * 2**20
    built = build_tokenizer(pretrain.MAX_LENGTH)
    for name in ("teacher", "student"):
        stored = AutoTokenizer.from_pretrained(ASSETS / name)
        assert stored.get_vocab() == built.get_vocab()
        assert stored.chat_template == built.chat_template
        assert stored.eos_token_id == built.eos_token_id


def test_the_stored_teacher_is_better_than_guessing_and_far_from_perfect() -> None:
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / "teacher")
    model = AutoModelForCausalLM.from_pretrained(ASSETS / "teacher")
    assert model.dtype == torch.float32
    held_out = problems(200, seed=987)
    chats = [[{"role": "user", "content": problem.text}] for problem in held_out]
    batch = tokenizer.apply_chat_template(chats, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    torch.manual_seed(0)
    texts = tokenizer.batch_decode(model.generate(**batch, max_new_tokens=16))
    right = sum(f"\\boxed{{{p.answer}}}" in text for p, text in zip(held_out, texts, strict=True))
    assert 0.15 < right / len(held_out) < 0.6


def test_pretraining_is_repeatable_and_its_files_load(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    phase = pretrain.Phase(pretrain.WARMUP_STEPS + 1, 1e-3, pretrain.STUDENT_TEXT)
    recipe = pretrain.Recipe("tiny", 16, 32, 1, 1, 0.02, (phase,))
    for folder in ("first", "second"):
        pretrain.build(recipe, tmp_path / folder, seed=3)
    weights = [tmp_path / folder / "tiny" / "model.safetensors" for folder in ("first", "second")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert AutoModelForCausalLM.from_pretrained(weights[0].parent).vocab_size == len(tokenizer)


def test_task_and_settings_import_without_torch() -> None:
    program = "import sys, s2d.demo.task, s2d.demo.settings; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
