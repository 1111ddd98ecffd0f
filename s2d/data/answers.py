r"""The label in a row: a final answer, or that of a worked solution (GSM8K's `#### n`, MATH's `\boxed{}`)."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from decimal import Decimal

from s2d.verifiers.extract import final_answer, last_boxed, unwrap

#: What is longer, has more lines or more words than this is a worked solution and no final answer.
MAX_ANSWER_CHARS = 200
MAX_ANSWER_WORDS = 12

# A word stands free, after a space or a bracket: the edges of the graph ab.bc>ac are no prose.
_WORD = re.compile(r"(?<![^\s(])[A-Za-z]{2,}")
_AMOUNT = re.compile(
    r"\\?[$€£]?\s?(?P<sign>-?)\\?[$€£]?(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]*\.?[0-9]+)"
)
_NUMBER = re.compile(r"-?(?:[0-9]{1,40}(?:\.[0-9]{0,40})?|\.[0-9]{1,40})")


def label_of(text: str) -> str | None:
    """The final answer that `text` is or contains; None if it is a worked solution that marks none."""
    boxed = last_boxed(text)
    if boxed is not None:
        return boxed
    answer = final_answer(text) or unwrap(text) or text.strip()
    return plain_amount(answer) if is_short(answer) else None


def is_short(text: str) -> bool:
    """Whether `text` can be a final answer rather than a worked solution."""
    return len(text) <= MAX_ANSWER_CHARS and "\n" not in text and len(_WORD.findall(text)) <= MAX_ANSWER_WORDS


def plain_amount(text: str) -> str:
    """ "$1,234.50" as "1234.50": a lone number without currency sign and thousands commas; other text as it is."""
    match = _AMOUNT.fullmatch(text)
    return match["sign"] + match["number"].replace(",", "") if match else text


def answer_key(answer: str) -> int:
    """64 bits, never 0, equal for answers that differ in spelling only: "1,000", "$1000" and "1000.0"."""
    digest = hashlib.blake2b(_normal(answer).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def _normal(answer: str) -> str:
    text = plain_amount(unwrap(answer) or "")
    if _NUMBER.fullmatch(text):
        return str(Decimal(text).normalize() + 0)  # + 0: no negative zero
    text = unicodedata.normalize("NFC", text).replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    return "".join(text.split()).casefold()
