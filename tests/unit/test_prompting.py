"""What a plan adds to every prompt: rendered as a server would render the saved student's template."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tiny import DEMO, labels, plan_for
from transformers import AutoTokenizer

from s2d.errors import StageFailure
from s2d.plan.prompting import Prompting
from s2d.rollouts.prompting import prompted
from s2d.stages.models import load_tokenizer, tokenizer_of

TOKENIZER = load_tokenizer(str(DEMO / "student"))
TEMPLATE = str(TOKENIZER.chat_template)
QUESTION = [{"role": "user", "content": "1+1="}]
#: As Qwen3's does: thinking unless it is switched off.
THINKING = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if enable_thinking is defined and enable_thinking is false %}<no-think>{% endif %}"
)


def render(prompting: Prompting, messages: list[dict[str, Any]], template: str = TEMPLATE, **arguments: Any) -> str:
    told = prompted(template, prompting)
    text = TOKENIZER.apply_chat_template(messages, chat_template=told, tokenize=False, **arguments)
    assert isinstance(text, str)
    return text


def test_nothing_asked_leaves_the_template_as_it_is() -> None:
    assert prompted(TEMPLATE, Prompting()) == TEMPLATE


def test_a_system_message_comes_first_unless_there_is_one() -> None:
    asked = Prompting(system="Be brief.")
    assert render(asked, QUESTION) == "<|system|>Be brief.<|user|>1+1="
    own = [{"role": "system", "content": "Be long."}, *QUESTION]
    assert render(asked, own) == "<|system|>Be long.<|user|>1+1="


def test_the_suffix_goes_to_the_last_question() -> None:
    asked = Prompting(suffix="\nAnswer in \\boxed{}.")
    talk = [*QUESTION, {"role": "assistant", "content": "2"}, {"role": "user", "content": "2+2="}]
    told = render(asked, talk, add_generation_prompt=True)
    assert told == "<|user|>1+1=<|assistant|>2<|end|><|user|>2+2=\nAnswer in \\boxed{}.<|assistant|>"


def test_an_argument_of_the_callers_own_wins() -> None:
    asked = Prompting(template={"enable_thinking": False})
    assert render(asked, QUESTION, THINKING) == "[user]1+1=<no-think>"
    assert render(asked, QUESTION, THINKING, enable_thinking=True) == "[user]1+1="


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_any_text_comes_through_as_it_is(system: str, suffix: str) -> None:
    told = render(Prompting(system=system, suffix=suffix), QUESTION)
    assert told == f"<|system|>{system}<|user|>1+1={suffix}"


def test_the_conversation_itself_cannot_be_set() -> None:
    with pytest.raises(ValidationError, match="cannot set messages"):
        Prompting(template={"messages": "x"})
    with pytest.raises(ValidationError):
        Prompting(template={"a b": 1})


def test_the_student_is_saved_with_it_once(tmp_path: Path) -> None:
    upload = labels(tmp_path / "rows.jsonl")
    plan = plan_for(upload, prompt={"system": "Be brief."})
    base = tokenizer_of(plan, "base_student", str(DEMO / "student"))
    base.save_pretrained(tmp_path / "made")
    again = tokenizer_of(plan, "opd_student", str(tmp_path / "made"))
    served = AutoTokenizer.from_pretrained(tmp_path / "made")
    for one in (base, again, served):
        assert one.apply_chat_template(QUESTION, tokenize=False) == "<|system|>Be brief.<|user|>1+1="


def test_a_model_without_a_template_cannot_be_prompted(tmp_path: Path) -> None:
    bare = load_tokenizer(str(DEMO / "student"))
    bare.chat_template = None
    bare.save_pretrained(tmp_path / "bare")
    plan = plan_for(labels(tmp_path / "rows.jsonl"), prompt={"suffix": "!"})
    with pytest.raises(StageFailure, match="no chat template"):
        tokenizer_of(plan, "base_student", str(tmp_path / "bare"))
