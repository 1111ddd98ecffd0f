"""Tools are given to a student only where its chat template shows them and its server reads the calls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from s2d.errors import InvalidRequest
from s2d.serve import tools
from s2d.serve.engine import RemoteEngine, TransformersEngine, VllmEngine

#: The part of each family's template that asks for calls.
QWEN = r"""{%- if tools %}{{- '<tool_call>\n{\"name\": <function-name>, \"arguments\": <args>}\n</tool_call>' }}"""
QWEN_CODER = r"{%- if tools %}{{- '<tool_call>\n<function=example>\n</function>\n</tool_call>' }}{%- endif %}"
LLAMA = (
    r"""{%- if tools is not none %}{{- "Environment: ipython\n" }}{{- '{"name": function name, "parameters": {}' }}"""
)
MISTRAL = r"""{%- if tools is defined %}[AVAILABLE_TOOLS]{% endif %}{{- "[TOOL_CALLS] [" }}"""
PLAIN = "{% for m in messages %}{{ m.content }}{% endfor %}"
ASKED: dict[str, Any] = {"messages": [], "tools": [{"type": "function", "function": {"name": "add"}}]}


@pytest.fixture
def student(tmp_path: Path) -> Path:
    """Without a chat template."""
    return tmp_path / "student"


def write(path: Path, template: str, token: str = "", *, beside: bool = True) -> Path:
    path.mkdir()
    config = {} if beside else {"chat_template": template}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text(json.dumps({"added_tokens": [{"content": token}]}))
    if beside:
        (path / "chat_template.jinja").write_text(template)
    return path


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize(
    ("template", "token", "form"),
    [
        (QWEN, "", "hermes"),
        (QWEN_CODER, "", None),
        (LLAMA, "<|python_tag|>", "llama3_json"),
        (LLAMA, "", None),
        (MISTRAL, "[TOOL_CALLS]", "mistral"),
        (MISTRAL, "", None),
        (PLAIN, "<|python_tag|>", None),
        ("<tool_call>" + PLAIN, "", None),
    ],
)
def test_the_form_of_a_call_is_told_by_the_template(
    student: Path, template: str, token: str, form: str | None, beside: bool
) -> None:
    assert tools.form_of(write(student, template, token, beside=beside)) == form


def test_a_folder_without_a_template_has_no_form(student: Path) -> None:
    student.mkdir()
    assert tools.form_of(student) is None


def test_vllm_is_started_with_the_parser_of_the_form(student: Path, tmp_path: Path) -> None:
    vllm = VllmEngine(Path(sys.executable), 0.45)
    command = vllm.launch("s", write(student, LLAMA, "<|python_tag|>")).command
    assert command[-3:] == ("--enable-auto-tool-choice", "--tool-call-parser", "llama3_json")
    plain = vllm.launch("s", write(tmp_path / "plain", PLAIN)).command
    assert not [word for word in plain if "tool" in word], "plain answers need not go through a parser"


@pytest.mark.parametrize("engine", [TransformersEngine(), VllmEngine(Path(sys.executable), 0.45)])
@pytest.mark.parametrize("choice", [{}, {"tool_choice": "auto"}, {"tool_choice": "required"},
                                    {"tool_choice": {"type": "function", "function": {"name": "add"}}}])  # fmt: skip
def test_tools_that_the_student_would_never_see_are_refused(student: Path, engine: Any, choice: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="leave 'tools' out") as refused:
        engine.fit(write(student, PLAIN), ASKED | choice)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "tools")


def test_a_call_that_the_embedded_server_would_not_read_is_refused(student: Path) -> None:
    folder = write(student, LLAMA, "<|python_tag|>")
    with pytest.raises(InvalidRequest, match="serve with vLLM"):
        TransformersEngine().fit(folder, ASKED)
    assert VllmEngine(Path(sys.executable), 0.45).fit(folder, ASKED) == ASKED


@pytest.mark.parametrize("body", [{"messages": []}, {"tools": []}, ASKED | {"tool_choice": "none"}])
def test_without_a_wish_for_a_call_nothing_is_refused(student: Path, body: dict[str, Any]) -> None:
    assert VllmEngine(Path(sys.executable), 0.45).fit(write(student, PLAIN), body) == body


def test_a_remote_server_answers_for_itself(student: Path) -> None:
    assert RemoteEngine("http://vllm:8000").fit(write(student, PLAIN), ASKED) == ASKED
