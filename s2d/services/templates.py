"""Templates of graders: `{{sample.output_text}}`, `{{item.answer}}`, `{{item.parts[0].unit}}`.

`sample.output_text` is what the model wrote, `sample.output_json` the same read as JSON, `item` the row of data. Text
is put in as it stands, anything else as JSON. Nothing is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, StringConstraints

from s2d.errors import InvalidRequest

#: A template with everything put in may have so many characters.
MAX_RENDERED_CHARS = 1_000_000

_VARIABLE = re.compile(r"\{\{([^{}]{0,200})\}\}")
_PATH = re.compile(r"(?:item|sample\.output_json)(?:\.\w+|\[[0-9]{1,6}\])*|sample\.output_text")
_STEP = re.compile(r"\.(?P<key>\w+)|\[(?P<index>[0-9]+)\]")


class Unresolved(Exception):
    """A variable has no value. `kind` is the client's name of the error."""

    def __init__(self, kind: Literal["invalid_variable_error", "sample_parse_error"], reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


def _known(text: str) -> str:
    unknown = [name for name in map(str.strip, _VARIABLE.findall(text)) if not _PATH.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"there is no variable {unknown[0]!r}; there are sample.output_text, sample.output_json and item, each of "
            "the latter with .key or [index] behind it"
        )
    return text


#: No NUL: what is rendered may be shown and stored.
Template = Annotated[str, StringConstraints(max_length=20_000, pattern=r"^[^\x00]*$"), AfterValidator(_known)]


@dataclass(frozen=True)
class Namespace:
    """What variables stand for."""

    output_text: str
    item: Any

    @cached_property
    def _output_json(self) -> Any:
        try:
            return json.loads(self.output_text)
        except (ValueError, RecursionError) as err:
            raise Unresolved("sample_parse_error", "the sample is not JSON that can be read") from err

    def render(self, template: str) -> str:
        """The template with its variables put in.

        Raises:
            Unresolved: a variable that the item or the sample does not have.
            InvalidRequest: the text becomes too long.
        """
        parts: list[str] = []
        end = length = 0
        for match in _VARIABLE.finditer(template):
            parts += [template[end : match.start()], self._text(match[1].strip())]
            end, length = match.end(), length + len(parts[-1])
            if length > MAX_RENDERED_CHARS:
                raise InvalidRequest(f"A grader's text has more than {MAX_RENDERED_CHARS:,} characters.", param="item")
        return "".join([*parts, template[end:]])

    def _text(self, path: str) -> str:
        value = self._value(path)
        if isinstance(value, str):
            return value
        try:
            return json.dumps(value, ensure_ascii=False)
        except RecursionError as err:
            raise Unresolved("invalid_variable_error", f"{path} is nested too deeply") from err

    def _value(self, path: str) -> Any:
        for name, start in self._roots.items():
            if path.startswith(name):
                return _walk(start(), path, path[len(name) :])
        raise Unresolved("invalid_variable_error", f"there is no {path}")

    @property
    def _roots(self) -> Mapping[str, Callable[[], Any]]:
        return {
            "sample.output_text": lambda: self.output_text,
            "sample.output_json": lambda: self._output_json,
            "item": lambda: self.item,
        }


def _walk(value: Any, path: str, rest: str) -> Any:
    for step in _STEP.finditer(rest):
        try:
            value = value[step["key"]] if step["key"] is not None else value[int(step["index"])]
        except (KeyError, IndexError, TypeError) as err:
            raise Unresolved("invalid_variable_error", f"there is no {path}") from err
    return value


def names_only(template: str) -> str | None:
    """The variable that is all of the template; None when there is anything else in it."""
    match = _VARIABLE.fullmatch(template.strip())
    return match[1].strip() if match else None
