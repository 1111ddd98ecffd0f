r"""Finds the final answer in a text: the last `\boxed{}`, else a `#### ` line, else after "answer is".

Every function here is linear in the text's length, for the text is what a model wrote and can be anything.
"""

from __future__ import annotations

import re

#: Only so many characters from the end of a completion are looked at: the final answer is at the end.
MAX_COMPLETION_CHARS = 16_384

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*(?:(?P<box>\{)|(?<=\s)(?P<bare>[^\s{}$\\]+))|\\.|[{}]", re.DOTALL)
# Bounded repetitions only: an open-ended one could be made quadratic by a flood of spaces or newlines.
_HASHES = re.compile(r"^[ \t]{0,8}####[ \t]{0,8}(?P<text>[^\s#][^\n]*)$", re.MULTILINE)
_ANSWER_IS = re.compile(r"\banswer\s{0,4}(?:\bis\b|:|=)[\s:]{0,4}(?=[^\s:])", re.IGNORECASE)
_NUMBER_LIKE = re.compile(r"[-+.$€£(\\0-9]")
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"))
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\{(?P<inner>[^{}]*)\}")


def final_answer(text: str) -> str | None:
    r"""The final answer of a completion or of a worked solution, without its mark; None if there is none."""
    tail = text[-MAX_COMPLETION_CHARS:]
    return last_boxed(tail) or marked_answer(tail)


def last_boxed(text: str) -> str | None:
    r"""The content of the last closed `\boxed{}` or `\fbox{}` (braces may nest), or of a bare `\boxed 5`."""
    opened: list[int | None] = []  # per open brace: where a box's content starts, None for any other brace
    found: tuple[int, str] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if match["bare"]:
            found = (match.start("bare"), match["bare"].rstrip(".,;"))
        elif match["box"]:
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened and (start := opened.pop()) is not None and start > (found or (-1,))[0]:
            found = (start, text[start : match.start()])
    return (found[1].strip() or None) if found else None


def marked_answer(text: str) -> str | None:
    """The last `#### ` line, or else the rest of the sentence after the last "answer is", or None.

    `#### ` is also a Markdown heading, so such a line counts only if it looks like a number or ends the text.
    """
    end = len(text.rstrip())
    hashes = [m for m in _HASHES.finditer(text) if _NUMBER_LIKE.match(m["text"]) or m.end() >= end]
    if hashes:
        return unwrap(hashes[-1]["text"])
    starts = [m.end() for m in _ANSWER_IS.finditer(text)]
    return unwrap(re.split(r"\n|\.\s", text[starts[-1] :], maxsplit=1)[0]) if starts else None


def unwrap(text: str) -> str | None:
    r"""Strips spaces, the full stop, Markdown, math delimiters and `\text{}`; None if nothing is left."""
    text = text.strip()
    if text.isalnum():  # most labels are a number or a word, and there is nothing to strip
        return text
    before = ""
    while text != before:
        before = text
        text = text.rstrip(".").strip()
        for left, right in _WRAPPERS:
            if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : -len(right)].strip()
        if whole := _TEXT.fullmatch(text):
            text = whole["inner"].strip()
    return text or None
