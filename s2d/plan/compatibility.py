"""Do teacher and student speak the same tokens? Checked before training, since a mismatch ruins distillation quietly.

Compared are the vocabulary (token -> id), the special tokens, the end-of-sequence and padding ids, the size of the
logits, and the chat template as it renders one conversation with the plan's system message and template arguments.
Templates are rendered in jinja's sandbox.
Not compared: merges and normalisation, since one tokenizer writes the ids that both models read.

Rows that pad the logits count: the KL is taken entry by entry over both distributions, by TRL's trainer (which refuses
other pairs) and by gate C2, so models that differ in padding alone are refused like any others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from s2d.errors import IncompatiblePair, InvalidPlan
from s2d.plan.catalog import CATALOG
from s2d.plan.document import Model, Warning_
from s2d.plan.models import (
    MAX_FILE_BYTES,
    ModelPolicy,
    fetch_tokenizer,
    model_files,
    read_object,
    same_weights,
    weights_folder,
)
from s2d.plan.prompting import Prompting

#: What both templates are rendered on.
CONVERSATION = (
    {"role": "user", "content": "What is 2 + 3?"},
    {"role": "assistant", "content": "2 + 3 = 5. \\boxed{5}"},
    {"role": "user", "content": "And twice that?"},
)
_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")
NOTHING_ADDED = Prompting()
ONE_FAMILY = "Choose two models of one family."


def check_models(
    teacher: Model, student: Model, policy: ModelPolicy, prompting: Prompting = NOTHING_ADDED
) -> tuple[Warning_, ...]:
    """Check a pair as far as its files are here; a warning says what is left for the start of the job.

    Args:
        prompting: what the plan adds to every prompt; templates are compared with it.

    Raises:
        IncompatiblePair: the two are one model, or differ; every difference is named.
        InvalidPlan: files of a model cannot be read, or `prompting` has no chat template to go to.
    """
    if _one_model(teacher, student):
        raise IncompatiblePair(f"Teacher and student are the same model ({teacher.name}): give two.", param="student")
    warnings = (*_smaller(teacher, student), *_equal_weights(teacher, student))
    for model in (teacher, student):
        if model.source == "hub":
            fetch_tokenizer(model, policy)
    folders = model_files(teacher), model_files(student)
    if folders[0] is not None and folders[1] is not None:
        return (*warnings, *check_pair(folders[0], folders[1], prompting))
    absent = [model.name for model, folder in zip((teacher, student), folders, strict=True) if folder is None]
    return (*warnings, _check_families(teacher, student, absent))


def check_pair(teacher_files: Path, student_files: Path, prompting: Prompting = NOTHING_ADDED) -> tuple[Warning_, ...]:
    """Compare the tokenizer and config files of two folders.

    Raises:
        IncompatiblePair: they differ; the message names every difference.
        InvalidPlan: a file is missing or cannot be read, or `prompting` has no chat template to go to.
    """
    teacher, student = _facts_of("teacher", teacher_files, prompting), _facts_of("student", student_files, prompting)
    different = [name for name in teacher if teacher[name] != student[name]]
    if different:
        advice = "Choose two with logits of one width." if different == ["logits"] else ONE_FAMILY
        raise _incompatible([_difference(name, teacher[name], student[name]) for name in different], advice)
    _check_width(teacher["vocabulary"], teacher["logits"])
    if teacher["chat template"] is None:
        return (_no_template(prompting),)
    return ()


def _no_template(prompting: Prompting) -> Warning_:
    if prompting != NOTHING_ADDED:
        raise InvalidPlan("prompt adds to the chat template, and neither model has one.", param="prompt")
    return Warning_(code="no_chat_template", message="Neither model has a chat template: prompts go in as plain text.")


def _incompatible(differences: list[str], advice: str) -> IncompatiblePair:
    listed = "; ".join(differences)
    return IncompatiblePair(
        f"Teacher and student cannot be distilled into one another: {listed}. {advice}",
        param="student",
        differences=differences,
    )


def _one_model(teacher: Model, student: Model) -> bool:
    """One folder, one hub id (in any case), or one commit under two ids."""
    local = "local" in (teacher.source, student.source)
    same_name = teacher.name == student.name if local else teacher.name.casefold() == student.name.casefold()
    return same_name or (teacher.revision is not None and teacher.revision == student.revision)


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


def _equal_weights(teacher: Model, student: Model) -> tuple[Warning_, ...]:
    if teacher.parameters != student.parameters:
        return ()
    folders = weights_folder(teacher), weights_folder(student)
    if folders[0] is None or folders[1] is None or not same_weights(folders[0], folders[1]):
        return ()
    return (
        Warning_(
            code="same_weights",
            message="Teacher and student look like copies of one model (equal files of weights, by size and samples): "
            "the student can learn from the teacher only what stage 1 adds to it.",
        ),
    )


def _check_families(teacher: Model, student: Model, absent: list[str]) -> Warning_:
    """What is known without the files of `absent`: sizes and, of two models of the catalog, the family."""
    entries = CATALOG.get(teacher.name), CATALOG.get(student.name)
    differences, advice = [], ONE_FAMILY
    if teacher.vocab_size != student.vocab_size:
        differences.append(_difference("logits", teacher.vocab_size, student.vocab_size))
        advice = _fitting(entries[0].family) if entries[0] else ONE_FAMILY
    if entries[0] and entries[1] and entries[0].family != entries[1].family:
        differences.append(f"family: teacher {entries[0].family}, student {entries[1].family}")
        advice = f"{ONE_FAMILY} If you know better, give two local folders: then their files decide."
    if differences:
        raise _incompatible(differences, advice)
    compared = "sizes and family" if entries[0] and entries[1] else "sizes"
    return Warning_(
        code="pair_not_checked",
        message=f"The tokenizer files of {' and '.join(absent)} are not on this machine: only {compared} were "
        "compared. The full check runs when the job starts and stops it if the two differ.",
    )


def _fitting(family: str) -> str:
    """Which models of a family go together."""
    widths: dict[int, list[str]] = {}
    for name, entry in CATALOG.items():
        if entry.family == family:
            widths.setdefault(entry.config["vocab_size"], []).append(name)
    groups = "; or ".join(f"{', '.join(names)} ({width:,})" for width, names in sorted(widths.items()))
    return f"Of {family} go together: {groups}."


def _difference(name: str, teacher: Any, student: Any) -> str:
    if name == "vocabulary":
        one, two = set(teacher.items()), set(student.items())
        example = min(one ^ two, key=lambda item: (item[1], item[0]))[0]
        return (
            f"vocabulary: {len(one - two):,} tokens of the teacher and {len(two - one):,} of the student have no "
            f"equal, such as {example!r}"
        )
    if name == "logits":
        return (
            f"logits: teacher {_width(teacher)} wide, student {_width(student)}, and the loss compares both "
            "distributions entry by entry, padding included"
        )
    return f"{name}: teacher {_short(teacher)}, student {_short(student)}"


def _width(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _short(value)


def _short(value: Any) -> str:
    text = "none" if value is None else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _facts_of(role: str, folder: Path, prompting: Prompting) -> dict[str, Any]:
    try:
        return _facts(folder, prompting)
    except InvalidPlan as err:
        err.param = role
        raise


def _facts(folder: Path, prompting: Prompting) -> dict[str, Any]:
    """Everything that must be equal, by the name it has in a message."""
    tokenizer, config = _json(folder, "tokenizer.json", required=True), _json(folder, "config.json")
    settings = _json(folder, "tokenizer_config.json")
    special = {**_json(folder, "special_tokens_map.json"), **settings}
    generation = _json(folder, "generation_config.json")
    return {
        "vocabulary": _vocabulary(tokenizer, special, _json(folder, "added_tokens.json"), folder),
        "special tokens": {name: _text(special.get(name)) for name in _SPECIAL},
        "end-of-sequence ids": _ids(generation, config, "eos_token_id", folder),
        "padding ids": _ids(generation, config, "pad_token_id", folder),
        "logits": config.get("vocab_size"),
        "chat template": _rendered(folder, settings, prompting),
    }


def _json(folder: Path, name: str, *, required: bool = False) -> dict[str, Any]:
    path = folder / name
    if path.is_file():
        return read_object(path, MAX_FILE_BYTES)
    if required:
        raise InvalidPlan(f"{folder} has no {name}; a fast tokenizer is needed to compare the pair.")
    return {}


def _check_width(vocabulary: Mapping[str, int], width: Any) -> None:
    """Of two models that are alike, so it is neither's alone."""
    highest = max(vocabulary.values(), default=0)
    if isinstance(width, int) and highest >= width:
        raise InvalidPlan(
            f"The tokenizers of both models have the id {highest:,}, and their logits end at {width:,}.",
            param="teacher",
        )


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
        return {str(token): int(i) for token, i in table.items()}
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as err:
        raise InvalidPlan(f"The tokenizer files of {folder} have no vocabulary that can be read.") from err


def _further(settings: dict[str, Any]) -> list[str]:
    """Special tokens without a name of their own."""
    extra = settings.get("extra_special_tokens") or []
    listed = list(extra.values()) if isinstance(extra, dict) else list(extra)
    return [str(_text(token)) for token in [*listed, *(settings.get("additional_special_tokens") or [])]]


def _text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _ids(generation: Mapping[str, Any], config: Mapping[str, Any], name: str, folder: Path) -> tuple[int, ...]:
    value = generation.get(name, config.get(name))
    listed = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(one, int) for one in listed):
        raise InvalidPlan(f"{name} of {folder} is neither a number nor a list of numbers.")
    return tuple(sorted(listed))


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several named templates
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return template


def _rendered(folder: Path, settings: dict[str, Any], prompting: Prompting) -> str | None:
    """What the template makes of the conversation with the start of an answer; None without a template."""
    tokens = {name: _text(settings.get(name)) or "" for name in _SPECIAL}
    system = [] if prompting.system is None else [{"role": "system", "content": prompting.system}]
    values = {**prompting.template, **tokens, "messages": system + [dict(turn) for turn in CONVERSATION]}
    try:
        template = _template(folder, settings)
        if template is None:
            return None
        return _environment().from_string(template).render(add_generation_prompt=True, **values)
    except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError) as err:
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
