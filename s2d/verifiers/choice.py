"""Is the final answer the right letter of a multiple-choice question?"""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field

from s2d.verifiers.extract import MAX_COMPLETION_CHARS, final_answer, unwrap

_LETTER = re.compile(r"(?:(?i:option|choice)\s)?\(?\s?(?P<letter>[A-Za-z])\s?(?:$|[).:,](?:.*)$)", re.DOTALL)


class ChoiceOptions(BaseModel):
    """`letters`: the answers that there are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    letters: str = Field(default="ABCDEFGHIJ", pattern="^[A-Z]{2,26}$")


class ChoiceVerifier:
    """1 if the final answer (the whole completion, where none is marked) names the label's letter, else 0."""

    name = "choice"

    def __init__(self, options: ChoiceOptions) -> None:
        self._letters = options.letters

    def grade(self, completion: str, answer: str) -> float:
        label = self._letter(answer)
        if label is None:
            raise ValueError(f"the label {answer[:80]!r} is none of the letters {self._letters}")
        return float(self._letter(final_answer(completion) or completion[-MAX_COMPLETION_CHARS:]) == label)

    def _letter(self, text: str) -> str | None:
        match = _LETTER.match(unwrap(text) or "")
        letter = match["letter"].upper() if match else None
        return letter if letter is not None and letter in self._letters else None
