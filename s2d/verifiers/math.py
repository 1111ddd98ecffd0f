r"""Is the final answer mathematically the label? Graded by math-verify, after a cheap path for plain answers.

math-verify's own timeouts use `signal.alarm`, which works on a main thread only and cannot interrupt C code, so
they are off: the pool kills a process that takes too long. A verifier used without the pool can hang.
"""

from __future__ import annotations

import logging
import re
from functools import lru_cache
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from s2d.verifiers.extract import MAX_COMPLETION_CHARS, last_boxed, marked_answer

#: A longer final answer is wrong: no label is that long, and parsing it is what costs time.
MAX_ANSWER_CHARS = 1_024

_INTEGER = re.compile(r"-?[0-9]{1,18}")
_EXTRACTION = (LatexExtractionConfig(), ExprExtractionConfig())

# math-verify warns on every process's first call that its timeouts are off, which is the intention here.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class MathVerifier:
    r"""1 if the last `\boxed{}` (else `#### `, "answer is") is the label as math-verify reads both, else 0."""

    name = "math"

    def __init__(self) -> None:
        # The parsers are built on first use; that second must not count against the first rollout.
        _verified(r"\boxed{\frac{1}{2}}", "0.5")

    def grade(self, completion: str, answer: str) -> float:
        tail = completion[-MAX_COMPLETION_CHARS:]
        boxed = last_boxed(tail)
        given = boxed or marked_answer(tail)
        # Digits of other scripts look like ASCII's, and int() takes them; labels are written in ASCII.
        if given is None or len(given) > MAX_ANSWER_CHARS or any(c.isdecimal() > c.isascii() for c in given):
            return 0.0
        plain = _plain_verdict(given, answer.strip())
        if plain is not None:
            return float(plain)
        return float(_verified(_in_box(given) if boxed else f"The answer is {given}", answer))


def _plain_verdict(given: str, answer: str) -> bool | None:
    """The verdict where it is plain: the same string, or two integers. None: ask math-verify."""
    if given == answer:
        return True
    if _INTEGER.fullmatch(given) and _INTEGER.fullmatch(answer):
        return int(given) == int(answer)
    return None


def _verified(completion: str, answer: str) -> bool:
    return bool(verify(_parsed_label(answer), _parsed(completion), timeout_seconds=None))


@lru_cache(maxsize=1024)
def _parsed_label(answer: str) -> list[Any]:
    return _parsed(_in_box(answer.strip().removeprefix("$").removesuffix("$")))


def _parsed(text: str) -> list[Any]:
    found: list[Any] = parse(text, extraction_config=_EXTRACTION, parsing_timeout=None)
    return found


def _in_box(answer: str) -> str:
    return rf"\boxed{{{answer}}}"
