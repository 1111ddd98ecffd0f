"""Whether a student can be given tools: by the form in which its chat template has calls written.

A server turns a call in the text into `tool_calls` only if it knows that form. Everything else is refused here: a
template that never shows the tools to the student, or a form that is not read, would give plain text for an answer.
Standard library only. It does not tell whether the student has learnt to call tools.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from s2d.errors import InvalidRequest

#: A form by the name of vLLM's parser for it, what of the template gives it away, and the token that the parser needs.
_FORMS = (
    ("hermes", "<tool_call>", None),  # Qwen2.5, Qwen3
    ("llama3_json", "Environment: ipython", "<|python_tag|>"),
    ("mistral", "[TOOL_CALLS]", "[TOOL_CALLS]"),
)
#: Calls as XML between the same marks as Hermes' JSON.
_XML = ("<function=", "<arg_key>")
VLLM_FORMS = frozenset(name for name, _, _ in _FORMS)
#: What transformers' server reads, for Qwen's architectures.
TRANSFORMERS_FORMS = frozenset({"hermes"})


@lru_cache(maxsize=64)
def form_of(path: Path) -> str | None:
    """How the student in this folder, which never changes once it is written, calls tools; None: in no known way."""
    source = template_source(path) or ""
    if "tools" not in source or any(mark in source for mark in _XML):
        return None
    for name, mark, token in _FORMS:
        if mark in source:
            return name if token is None or _has_token(path, token) else None
    return None


def check(path: Path, body: Mapping[str, Any], readable: frozenset[str]) -> None:
    """
    Args:
        readable: the forms that the student's server reads.

    Raises:
        InvalidRequest: `unsupported_parameter`, where the request's tools would have no effect.
    """
    if not body.get("tools") or body.get("tool_choice") == "none":
        return
    form = form_of(path)
    if form is None:
        raise _refused("this student's chat template has no form for tools that a server reads: leave 'tools' out")
    if form not in readable:
        raise _refused(f"the server of this student does not read tool calls in its form, {form}: serve with vLLM")


def template_source(path: Path) -> str | None:
    """The student's chat template, if it has one."""
    file, config = path / "chat_template.jinja", path / "tokenizer_config.json"
    if file.exists():
        return file.read_text(encoding="utf-8")
    source = json.loads(config.read_text(encoding="utf-8")).get("chat_template") if config.exists() else None
    return source if isinstance(source, str) else None


def _has_token(path: Path, token: str) -> bool:
    """vLLM does not start with a parser whose token the tokenizer has not."""
    file = path / "tokenizer.json"
    return file.exists() and json.dumps(token, ensure_ascii=False) in file.read_text(encoding="utf-8")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="unsupported_parameter", param="tools")
