"""Deals the rows out to the roles that may use them. Each label goes to one role; unlabeled prompts are free.

The order is a keyed hash of (seed, row id), so it does not depend on the file's order, and the test rows are dealt
first, so that changing a train share never moves them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from pydantic import BaseModel, ConfigDict

from s2d.data.rows import Row, atomic_writer, parse_row, row_line
from s2d.errors import InvalidData

Role = Literal["teacher_rl", "student_rl", "validation", "test", "prompts"]

ROLES: tuple[Role, ...] = get_args(Role)

#: The order in which labels are dealt.
_DEALT: tuple[Role, ...] = ("test", "validation", "teacher_rl", "student_rl")

_KEY_BYTES, _ID_BYTES = 16, 16


class SplitReport(BaseModel):
    """Per role: how many rows, the SHA-256 of `<role>.jsonl`, and the row ids in the file's order."""

    model_config = ConfigDict(frozen=True)

    counts: dict[Role, int]
    sha256: dict[Role, str]
    ids: dict[Role, list[str]]


def split(rows: Path, counts: Mapping[Role, int], seed: int, out_dir: Path) -> SplitReport:
    """Writes `<role>.jsonl` for every role into `out_dir`; a role that `counts` does not name gets none.

    test, validation, teacher_rl and student_rl get exactly their count of labeled rows, no row twice. prompts gets at
    most its count, without answers: the problems of teacher_rl first, then unlabeled ones.
    InvalidData if there are too few labels or if `rows` has a prompt twice.
    """
    if min(counts.values(), default=0) < 0:
        raise InvalidData(f"a share cannot be negative: {dict(counts)}")
    labeled, unlabeled = _ordered(rows, seed)
    dealt = _deal(labeled, unlabeled, counts)
    _assert_disjoint(dealt)
    sha256 = {}
    with rows.open("rb") as source:
        for role in ROLES:
            sha256[role] = _write(source, dealt[role], out_dir / f"{role}.jsonl", keep_answer=role != "prompts")
    return SplitReport(
        counts={role: len(dealt[role]) for role in ROLES},
        sha256=sha256,
        ids={role: [_id(entry) for entry in dealt[role]] for role in ROLES},
    )


def _ordered(rows: Path, seed: int) -> tuple[list[bytes], list[bytes]]:
    """An entry (key, row id, offset) per row, in the order of the keys: the labeled ones, the unlabeled ones.

    Entries are flat bytes, as 1M rows of tuples would take three times the memory.
    """
    labeled: list[bytes] = []
    unlabeled: list[bytes] = []
    for offset, row in _with_offsets(rows):
        row_id = bytes.fromhex(row.id)
        key = hashlib.blake2b(row_id, key=str(seed).encode(), digest_size=_KEY_BYTES).digest()
        (unlabeled if row.answer is None else labeled).append(key + row_id + offset.to_bytes(8, "big"))
    labeled.sort()
    unlabeled.sort()
    _refuse_repeats(labeled, unlabeled)
    return labeled, unlabeled


def _with_offsets(rows: Path) -> Iterator[tuple[int, Row]]:
    offset = 0
    with rows.open("rb") as file:
        for number, line in enumerate(file, start=1):
            yield offset, parse_row(line, f"{rows.name}, line {number}")
            offset += len(line)


def _refuse_repeats(labeled: list[bytes], unlabeled: list[bytes]) -> None:
    """Equal ids have equal keys, so they would be neighbours in the order of all entries."""
    everything = sorted(chain(labeled, unlabeled))
    for one, other in zip(everything, islice(everything, 1, None), strict=False):
        if _id(one) == _id(other):
            raise InvalidData(f"the prompt {_id(one)} comes twice in the rows: ingest the file again", param="file")


def _deal(labeled: list[bytes], unlabeled: list[bytes], counts: Mapping[Role, int]) -> dict[Role, list[bytes]]:
    wanted = sum(counts.get(role, 0) for role in _DEALT)
    if wanted > len(labeled):
        shares = ", ".join(f"{role} {counts.get(role, 0):,}" for role in _DEALT)
        raise InvalidData(
            f"the plan needs {wanted:,} labels ({shares}) and the file has {len(labeled):,}: "
            "add labeled rows or ask for smaller shares",
            wanted=wanted,
            labeled=len(labeled),
        )
    rest = iter(labeled)
    dealt: dict[Role, list[bytes]] = {role: list(islice(rest, counts.get(role, 0))) for role in _DEALT}
    dealt["prompts"] = list(islice(chain(dealt["teacher_rl"], unlabeled), counts.get("prompts", 0)))
    return dealt


def _assert_disjoint(dealt: Mapping[Role, list[bytes]]) -> None:
    """The promise that the method rests on, checked on what is about to be written."""
    spent: set[bytes] = set()
    for role in _DEALT:
        assert spent.isdisjoint(dealt[role]), f"{role} shares a label with another role"
        spent.update(dealt[role])
    held_out = spent.difference(dealt["teacher_rl"])
    assert held_out.isdisjoint(dealt["prompts"]), "a held-out problem is in the prompt pool"


def _write(source: BinaryIO, entries: Iterable[bytes], path: Path, *, keep_answer: bool) -> str:
    digest = hashlib.sha256()
    with atomic_writer(path) as file:
        for entry in entries:
            source.seek(int.from_bytes(entry[-8:], "big"))
            row = parse_row(source.readline(), path.name)
            line = row_line(row if keep_answer else row.model_copy(update={"answer": None}))
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def _id(entry: bytes) -> str:
    return entry[_KEY_BYTES : _KEY_BYTES + _ID_BYTES].hex()
