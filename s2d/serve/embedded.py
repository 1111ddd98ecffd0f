"""What transformers' own server leaves to its caller: the context limit, and sampling as vLLM does it.

That server answers prompts beyond the model's context with nonsense, decodes greedily unless its own `do_sample` is
set, applies a top-k of 50 by default, and fails with an HTTP 500 where a message does not fit the chat template. All
of it is settled here before sending. Needs `tokenizers` and `jinja2`, not torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from s2d.errors import InvalidRequest
from s2d.serve.engine import GENERATION_FIELDS
from s2d.serve.tools import template_source

#: Tokens, when the request names no limit and the context has room for them.
DEFAULT_MAX_TOKENS = 1024
#: The same of a completion without chat, as OpenAI and vLLM have it.
DEFAULT_TEXT_TOKENS = 16
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
#: The sampling parameters of a model's generation_config.json that vLLM takes as defaults too.
SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class Student:
    """What a student's folder says about prompts and sampling. `context` is in tokens."""

    tokenizer: Tokenizer
    template: jinja2.Template | None
    special_tokens: Mapping[str, str]
    context: int
    generation: Mapping[str, Any]

    def prompt_tokens(self, body: Mapping[str, Any]) -> int:
        """The length of the rendered prompt. Raises InvalidRequest if the template refuses the messages."""
        if "prompt" in body:
            return len(self.tokenizer.encode(body["prompt"]).ids)
        if self.template is None:
            raise InvalidRequest("this student has no chat template: it cannot answer chat completions", param="model")
        variables = {"tools": body.get("tools"), **self.special_tokens, **body.get("chat_template_kwargs", {})}
        try:
            text = self.template.render(messages=body["messages"], add_generation_prompt=True, **variables)
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            reason = f"the student's chat template refuses the messages: {error}"
            raise InvalidRequest(reason, param="messages") from error
        return len(self.tokenizer.encode(text, add_special_tokens=False).ids)


def fit(path: Path, body: dict[str, Any]) -> dict[str, Any]:
    """The request with the sampling spelled out and `max_tokens` cut to what the context has room for.

    Raises InvalidRequest with code `context_length_exceeded` when the prompt leaves no room for a single token.
    """
    student = load(path)
    param, said = ("prompt", "prompt takes") if "prompt" in body else ("messages", "messages take")
    used = student.prompt_tokens(body)
    if used >= student.context:
        raise InvalidRequest(
            f"this model's maximum context length is {student.context} tokens, but the {said} {used}: shorten them",
            code="context_length_exceeded",
            param=param,
        )
    default = DEFAULT_MAX_TOKENS if param == "messages" else DEFAULT_TEXT_TOKENS
    wanted = body.get("max_completion_tokens") or body.get("max_tokens") or default
    moved = {name: body[name] for name in GENERATION_FIELDS & body.keys()}
    if "top_k" in moved:
        # vLLM takes -1 for no limit too.
        moved["top_k"] = max(0, moved["top_k"])
    dropped = {"stream_options", "max_completion_tokens", *moved}
    kept = {name: value for name, value in body.items() if name not in dropped}
    generation = {**student.generation, **moved, "do_sample": body.get("temperature") != 0}
    return kept | {"max_tokens": min(wanted, student.context - used), "generation_config": json.dumps(generation)}


@lru_cache(maxsize=8)
def load(path: Path) -> Student:
    """Reads a student's folder, which never changes once it is written."""
    config = _read(path / "config.json")
    generation = _read(path / "generation_config.json")
    tokenizer_config = _read(path / "tokenizer_config.json")
    # A key left out would get transformers' default; vLLM's are no truncation of the distribution.
    chosen = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    chosen |= {name: generation[name] for name in SAMPLING if generation.get(name) is not None}
    ids = {name: generation.get(name, config.get(name)) for name in TOKEN_IDS}
    return Student(
        tokenizer=Tokenizer.from_file(str(path / "tokenizer.json")),
        template=_template(path),
        special_tokens=_special_tokens(tokenizer_config),
        context=int(config.get("text_config", config)["max_position_embeddings"]),
        generation=chosen | {name: value for name, value in ids.items() if value is not None},
    )


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    named = {
        name: tokenizer_config[name] for name in ("bos_token", "eos_token", "pad_token") if name in tokenizer_config
    }
    contents = {name: value["content"] if isinstance(value, dict) else value for name, value in named.items()}
    return {name: value for name, value in contents.items() if value is not None}


def _template(path: Path) -> jinja2.Template | None:
    """The chat template, if there is one, under the rules that transformers renders it with."""
    source = template_source(path)
    if source is None:
        return None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment.from_string(source)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
