"""Is the final answer the label's number, within a tolerance?"""

from __future__ import annotations

import math
import re

from pydantic import BaseModel, ConfigDict, Field

from s2d.verifiers.extract import MAX_COMPLETION_CHARS, final_answer

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = rf"(?:{_WHOLE}(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{{1,3}}(?![0-9]))?"
_QUOTIENT = re.compile(rf"(?P<a>{_NUMBER})(?:\s{{0,2}}/\s{{0,2}}(?P<b>{_NUMBER}))?")
_FRAC = re.compile(r"\\[dt]?frac\{([^{}]{1,40})\}\{([^{}]{1,40})\}")
# The minus of a negative number, not of a difference: "x = -3", "is -3" and "-$3", but not "5-3" nor "5 - 3".
_MINUS = re.compile(r"(?:(?:^|[^0-9A-Za-z)\s])\s{0,2}-\s{0,2}|\s-)[$€£\\]{0,2}$")
_SIGNS = str.maketrans({"−": "-", "–": "-"})  # typographic minus signs


class NumericOptions(BaseModel):
    """Right when |x − label| ≤ max(`abs_tol`, `rel_tol` · |label|)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rel_tol: float = Field(default=1e-6, ge=0, lt=1)
    abs_tol: float = Field(default=1e-9, ge=0, allow_inf_nan=False)


class NumericVerifier:
    """1 if the final answer is the label's number, else 0; where nothing is marked the last number counts."""

    name = "numeric"

    def __init__(self, options: NumericOptions) -> None:
        self._options = options

    def grade(self, completion: str, answer: str) -> float:
        label = single_number(answer)
        if label is None:
            raise ValueError(f"the label {answer[:80]!r} is not a number")
        marked = final_answer(completion)
        given = last_number(completion[-MAX_COMPLETION_CHARS:]) if marked is None else single_number(marked)
        if given is None:
            return 0.0
        return float(abs(given - label) <= max(self._options.abs_tol, self._options.rel_tol * abs(label)))


def single_number(text: str) -> float | None:
    """The one number in `text` (with units or currency, or a quotient); None if there is none, or several."""
    found = _numbers(text)
    return found[0] if len(found) == 1 else None


def last_number(text: str) -> float | None:
    """The last number in `text`, None if there is none."""
    found = _numbers(text)
    return found[-1] if found else None


def _numbers(text: str) -> list[float | None]:
    text = _FRAC.sub(r"\1/\2", text.translate(_SIGNS))
    return [_value(text, match) for match in _QUOTIENT.finditer(text)]


def _value(text: str, match: re.Match[str]) -> float | None:
    numerator, denominator = _float(match["a"]), _float(match["b"] or "1")
    if denominator == 0:
        return None
    negative = _MINUS.search(text[max(0, match.start() - 8) : match.start()])
    value = numerator / denominator
    return (-value if negative else value) if math.isfinite(value) else None


def _float(text: str) -> float:
    return float(text.replace(",", ""))
