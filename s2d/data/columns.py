"""Which columns of an uploaded row hold the problem and the label; why a row is rejected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, NoReturn

from s2d.data.answers import label_of
from s2d.data.rows import Message

#: Names are compared without case; the first column that has a value counts.
PROMPT_COLUMNS = ("problem", "question", "prompt", "messages")
ANSWER_COLUMNS = ("final_answer", "answer", "ground_truth", "label", "solution")


class RowRejected(Exception):
    """`kind` is one of a fixed set of reasons, for counting; `reason` adds what is special to the row."""

    def __init__(self, kind: str, detail: str = "") -> None:
        self.kind = kind
        self.reason = f"{kind}: {detail[:200]}" if detail else kind
        super().__init__(self.reason)


def parse_line(line: bytes) -> dict[str, Any]:
    """The JSON object on a line, its column names in lower case. RowRejected if there is none."""
    if b"\0" in line:
        raise RowRejected("NUL bytes")
    try:
        # Without its newline: where a line was cut off, the error would be in column 1 of the next.
        record = _DECODER.decode(line.decode("utf-8").rstrip())
    except UnicodeDecodeError as error:
        raise RowRejected("not UTF-8", f"byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise RowRejected("broken JSON", f"{error.msg}, column {error.colno}") from error
    except RecursionError as error:
        raise RowRejected("JSON nested too deeply") from error
    except ValueError as error:
        raise RowRejected("a number that cannot be read", str(error)) from error
    if not isinstance(record, dict):
        raise RowRejected("not a JSON object", f"the line holds a {_json_type(record)}")
    return {name.strip().lower(): value for name, value in record.items()}


def parse_record(record: Mapping[str, Any]) -> tuple[list[Message], str | None]:
    """The prompt and the label (None: unlabeled) of a row. RowRejected with the reason if it has no usable one."""
    column = next((name for name in PROMPT_COLUMNS if not _is_empty(record.get(name))), None)
    if column is None:
        raise RowRejected("no problem", f"give one of the columns {', '.join(PROMPT_COLUMNS)}")
    value = record[column]
    if isinstance(value, str) and column != "messages":
        return [Message(role="user", content=_text(value, column))], _answer(record, None)
    if isinstance(value, list) and column in ("prompt", "messages"):
        messages, solution = _chat(value, column)
        return messages, _answer(record, solution)
    wanted = "a list of chat turns" if column == "messages" else "text"
    raise RowRejected("the problem has the wrong type", f"{column} is a {_json_type(value)}, not {wanted}")


def _chat(turns: list[Any], column: str) -> tuple[list[Message], str | None]:
    """The prompt turns and, where the chat ends in an assistant's turn, that turn as the worked solution."""
    read = [_turn(turn, column, number) for number, turn in enumerate(turns, start=1)]
    solution = read.pop()[1] if read[-1][0] == "assistant" else None
    if any(role == "assistant" for role, _ in read):
        raise RowRejected("a chat of several rounds", "only the last turn may be the assistant's")
    if not read or read[-1][0] != "user" or not read[-1][1].strip():
        raise RowRejected("no problem", f"{column} must have a user turn with text before the answer")
    return [Message.model_validate({"role": role, "content": text}) for role, text in read], solution


def _turn(turn: Any, column: str, number: int) -> tuple[str, str]:
    where = f"{column}, turn {number}"
    if not isinstance(turn, dict) or turn.get("role") not in ("system", "user", "assistant"):
        raise RowRejected("a chat turn without a known role", f"{where}: role must be system, user or assistant")
    content = turn.get("content")
    if isinstance(content, list):
        content = _joined(content, where)
    if not isinstance(content, str):
        raise RowRejected("a chat turn without text", where)
    return turn["role"], _text(content, where)


def _joined(parts: list[Any], where: str) -> str:
    if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise RowRejected("a chat turn without text", f"{where}: only parts of type text are supported")
    return "".join(part["text"] for part in parts)


def _answer(record: Mapping[str, Any], solution: str | None) -> str | None:
    given = [(name, record[name]) for name in ANSWER_COLUMNS if not _is_empty(record.get(name))]
    given += [] if _is_empty(solution) else [("the assistant's turn", solution)]
    for name, value in given:
        label = label_of(_answer_text(value, name))
        if label is not None:
            return label
    if given:
        raise RowRejected(
            "a worked solution without a marked final answer",
            rf"{given[0][0]}: end it with '#### <answer>' or '\boxed{{<answer>}}', or add the column final_answer",
        )
    return None


def _answer_text(value: Any, name: str) -> str:
    if isinstance(value, str):
        return _text(value, name)
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return str(value)
    raise RowRejected("the answer has the wrong type", f"{name} is a {_json_type(value)}, not text or a number")


def _text(text: str, where: str) -> str:
    if "\0" in text:
        raise RowRejected("NUL characters", where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowRejected("broken Unicode", f"{where} has half of a surrogate pair") from error
    return text.strip()


def _is_empty(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _json_type(value: Any) -> str:
    names = {dict: "object", list: "list", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


#: Made once: a decoder for each of a million lines would take as long as their reading.
_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)
