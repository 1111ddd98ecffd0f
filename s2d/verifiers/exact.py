"""Is the final answer the label, letter by letter, after Unicode and white space are normalised?"""

from __future__ import annotations

import unicodedata

from pydantic import BaseModel, ConfigDict

from s2d.verifiers.extract import MAX_COMPLETION_CHARS, final_answer, unwrap


class ExactOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    ignore_case: bool = True


class ExactVerifier:
    """1 if the final answer (the whole completion, where none is marked) equals the label, else 0."""

    name = "exact"

    def __init__(self, options: ExactOptions) -> None:
        self._ignore_case = options.ignore_case

    def grade(self, completion: str, answer: str) -> float:
        found = final_answer(completion)
        if found is None and len(completion) <= MAX_COMPLETION_CHARS:
            found = completion
        return float(found is not None and self._normal(found) == self._normal(answer) != "")

    def _normal(self, text: str) -> str:
        plain = " ".join(unicodedata.normalize("NFC", unwrap(text) or "").split())
        return plain.casefold() if self._ignore_case else plain
