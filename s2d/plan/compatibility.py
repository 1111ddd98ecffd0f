"""Do teacher and student speak the same tokens? Checked before training, since a mismatch ruins distillation quietly.

Compared are the vocabulary (token -> id), the special tokens, the end-of-sequence and padding ids, the size of the
logits, and the chat template as it renders one conversation. Templates are rendered in jinja's sandbox.
Not compared: merges and normalisation, since one tokenizer writes the ids that both models read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from s2d.errors import IncompatiblePair, InvalidPlan
from s2d.plan.catalog import CATALOG
from s2d.plan.document import Model, Warning_
from s2d.plan.models import ModelPolicy, fetch_tokenizer, model_files

#: What both templates are rendered on.
CONVERSATION = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = 5. \\boxed{5}"},
    {"role": "user", "content": "And twice that?"},
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def check_models(teacher: Model, student: Model, policy: ModelPolicy) -> tuple[Warning_, ...]:
    """Check a pair as far as its files are here; a warning says what is left for the start of the job.

    Raises:
        IncompatiblePair: the two are one model, or differ; every difference is named.
    """
    if teacher.name == student.name:
        raise IncompatiblePair(f"Teacher and student are the same model ({teacher.name}): give two.", param="student")
    warnings = _smaller(teacher, student)
    for model in (teacher, student):
        if model.source == "hub":
            fetch_tokenizer(model, policy)
    folders = model_files(teacher), model_files(student)
    if folders[0] is not None and folders[1] is not None:
        return warnings + check_pair(folders[0], folders[1])
    return warnings + _check_families(teacher, student)


def check_pair(teacher_files: Path, student_files: Path) -> tuple[Warning_, ...]:
    """Compare the tokenizer and config files of two folders.

    Raises:
        IncompatiblePair: they differ; the message names every difference.
        InvalidPlan: a file is missing or cannot be read.
    """
    teacher, student = _facts(teacher_files), _facts(student_files)
    differences = [
        _difference(name, teacher[name], student[name]) for name in teacher if teacher[name] != student[name]
    ]
    if differences:
        raise _incompatible(differences)
    if teacher["chat template"] is None:
        return (
            Warning_(
                code="no_chat_template", message="Neither model has a chat template: prompts go in as plain text."
            ),
        )
    return ()


def _incompatible(differences: list[str]) -> IncompatiblePair:
    listed = "; ".join(differences)
    return IncompatiblePair(
        f"Teacher and student cannot be distilled into one another: {listed}. Choose two models of one family.",
        param="student",
        differences=differences,
    )


def _smaller(teacher: Model, student: Model) -> tuple[Warning_, ...]:
    if teacher.parameters >= student.parameters:
        return ()
    return (
        Warning_(
            code="teacher_smaller",
            message=f"The teacher ({teacher.parameters:,} parameters) is smaller than the student "
            f"({student.parameters:,}): labels are expected to pay most on the stronger model.",
        ),
    )


def _check_families(teacher: Model, student: Model) -> tuple[Warning_, ...]:
    families = [CATALOG[m.name].family if m.name in CATALOG else m.model_type for m in (teacher, student)]
    known = teacher.name in CATALOG and student.name in CATALOG
    differences = []
    if known and families[0] != families[1]:
        differences.append(f"family: teacher {families[0]}, student {families[1]}")
    if teacher.vocab_size != student.vocab_size:
        differences.append(f"logits: teacher {teacher.vocab_size:,} wide, student {student.vocab_size:,}")
    if differences:
        raise _incompatible(differences)
    return (
        Warning_(
            code="pair_not_checked",
            message="The tokenizer files are not on this machine: only sizes and family were compared. The full check "
            "runs when the job starts and stops it if the two differ.",
        ),
    )


def _difference(name: str, teacher: Any, student: Any) -> str:
    if name == "vocabulary":
        one, two = set(teacher.items()), set(student.items())
        example = min(one ^ two, key=lambda item: (item[1], item[0]))[0]
        return (
            f"vocabulary: {len(one - two):,} tokens of the teacher and {len(two - one):,} of the student have no "
            f"equal, such as {example!r}"
        )
    return f"{name}: teacher {_short(teacher)}, student {_short(student)}"


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _facts(folder: Path) -> dict[str, Any]:
    """Everything that must be equal, by the name it has in a message."""
    tokenizer, config = _json(folder, "tokenizer.json"), _json(folder, "config.json", required=False)
    settings = _json(folder, "tokenizer_config.json", required=False)
    special = {**_json(folder, "special_tokens_map.json", required=False), **settings}
    added = _json(folder, "added_tokens.json", required=False)
    generation = _json(folder, "generation_config.json", required=False)
    return {
        "vocabulary": _vocabulary(tokenizer, special, added, folder),
        "special tokens": {name: _text(special.get(name)) for name in _SPECIAL},
        "end-of-sequence ids": _ids(generation.get("eos_token_id", config.get("eos_token_id"))),
        "padding ids": _ids(generation.get("pad_token_id", config.get("pad_token_id"))),
        "logits": config.get("vocab_size"),
        "chat template": _rendered(folder, settings),
    }


def _json(folder: Path, name: str, *, required: bool = True) -> dict[str, Any]:
    path = folder / name
    if not path.is_file():
        if required:
            raise InvalidPlan(f"{folder} has no {name}; a fast tokenizer is needed to compare the pair.")
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as err:
        raise InvalidPlan(f"{path} is not valid JSON: {err}") from err
    if not isinstance(value, dict):
        raise InvalidPlan(f"{path} does not hold a JSON object.")
    return value


def _vocabulary(
    tokenizer: dict[str, Any], settings: dict[str, Any], added: dict[str, Any], folder: Path
) -> dict[str, int]:
    """Every token with its id, those included that transformers adds to the ones of tokenizer.json when it loads it."""
    try:
        vocab = tokenizer["model"]["vocab"]
        # Unigram models list [token, score] in the order of their ids.
        table = dict(vocab) if isinstance(vocab, dict) else {entry[0]: i for i, entry in enumerate(vocab)}
        table.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()})
        table.update({_text(token): int(i) for i, token in (settings.get("added_tokens_decoder") or {}).items()})
        table.update(added)
        for token in _further(settings):
            table.setdefault(token, 1 + max(table.values(), default=-1))
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as err:
        raise InvalidPlan(f"The tokenizer files of {folder} have no vocabulary that can be read.") from err
    return table


def _further(settings: dict[str, Any]) -> list[str]:
    """Special tokens without a name of their own."""
    extra = settings.get("extra_special_tokens") or []
    listed = list(extra.values()) if isinstance(extra, dict) else list(extra)
    return [str(_text(token)) for token in [*listed, *(settings.get("additional_special_tokens") or [])]]


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(sorted(value if isinstance(value, list) else [] if value is None else [value]))


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template


def _rendered(folder: Path, settings: dict[str, Any]) -> str | None:
    """What the template makes of `CONVERSATION` with the start of an answer; None without a template."""
    tokens = {name: _text(settings.get(name)) or "" for name in _SPECIAL}
    try:
        template = _template(folder, settings)
        if template is None:
            return None
        return (
            _environment()
            .from_string(template)
            .render(messages=[dict(turn) for turn in CONVERSATION], add_generation_prompt=True, **tokens)
        )
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as err:
        raise InvalidPlan(f"The chat template of {folder} cannot be rendered: {err}") from err


class _Generation(Extension):
    """`{% generation %}` marks an answer for training; the text in it is rendered as it stands."""

    tags = {"generation"}  # noqa: RUF012 (jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _environment() -> Environment:
    """The names that templates may use, as transformers gives them; the date is fixed so that runs agree."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["strftime_now"] = lambda _format: "<today>"
    environment.globals["raise_exception"] = _refuse
    return environment


def _refuse(message: str) -> str:
    raise TemplateError(message)
