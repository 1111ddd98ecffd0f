"""The promises of the split: disjoint, independent of file order, and a test share that stays put."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2d.data import ROLES, Message, Role, Row, SplitReport, prompt_id, read_rows, split, write_rows
from s2d.errors import InvalidData

LABELED_ROLES: tuple[Role, ...] = ("test", "validation", "teacher_rl", "student_rl")


def make_rows(labeled: int, unlabeled: int) -> list[Row]:
    rows = []
    for number in range(labeled + unlabeled):
        messages = [Message(role="user", content=f"problem {number}")]
        answer = str(number) if number < labeled else None
        rows.append(Row(id=prompt_id(messages), messages=messages, answer=answer, line=number + 1))
    return rows


def split_rows(
    folder: Path, rows: list[Row], counts: Mapping[Role, int], seed: int = 0
) -> tuple[SplitReport, dict[Role, list[Row]]]:
    write_rows(folder / "rows.jsonl", rows)
    report = split(folder / "rows.jsonl", counts, seed, folder / "split")
    return report, {role: list(read_rows(folder / "split" / f"{role}.jsonl")) for role in ROLES}


@settings(max_examples=40, deadline=None)
@given(
    shares=st.tuples(*[st.integers(0, 12)] * 4),
    prompts=st.integers(0, 60),
    spare=st.integers(0, 10),
    unlabeled=st.integers(0, 20),
    seed=st.integers(0, 2**63),
)
def test_every_label_goes_to_one_role(
    tmp_path_factory: pytest.TempPathFactory,
    shares: tuple[int, ...],
    prompts: int,
    spare: int,
    unlabeled: int,
    seed: int,
) -> None:
    counts: dict[Role, int] = dict(zip(LABELED_ROLES, shares, strict=True)) | {"prompts": prompts}
    rows = make_rows(sum(shares) + spare, unlabeled)
    report, files = split_rows(tmp_path_factory.mktemp("split"), rows, counts, seed)

    assert {role: len(files[role]) for role in LABELED_ROLES} == {role: counts[role] for role in LABELED_ROLES}
    spent = [row.id for role in LABELED_ROLES for row in files[role]]
    assert len(set(spent)) == len(spent)
    assert all(row.answer is not None for role in LABELED_ROLES for row in files[role])

    pool = [row.id for row in files["prompts"]]
    free = {row.id for row in rows if row.answer is None}
    teacher = [row.id for row in files["teacher_rl"]]
    assert all(row.answer is None for row in files["prompts"])
    assert len(pool) == len(set(pool)) == min(prompts, len(teacher) + unlabeled)
    assert pool[: len(teacher)] == teacher[:prompts]
    assert set(pool) <= free | set(teacher)

    assert report.ids == {role: [row.id for row in files[role]] for role in ROLES}


def test_file_order_does_not_matter_and_the_seed_does(tmp_path: Path) -> None:
    rows = make_rows(50, 20)
    shuffled = random.Random(1).sample(rows, len(rows))
    counts: dict[Role, int] = {"teacher_rl": 10, "student_rl": 10, "validation": 10, "test": 10, "prompts": 25}
    one, _ = split_rows(tmp_path / "a", rows, counts)
    two, _ = split_rows(tmp_path / "b", shuffled, counts)
    other, _ = split_rows(tmp_path / "c", rows, counts, seed=1)
    assert one == two
    assert set(one.ids["test"]) != set(other.ids["test"])


def test_changing_a_train_share_moves_no_held_out_row(tmp_path: Path) -> None:
    rows = make_rows(60, 0)
    small, _ = split_rows(tmp_path / "a", rows, {"teacher_rl": 5, "student_rl": 5, "validation": 10, "test": 10})
    large, _ = split_rows(tmp_path / "b", rows, {"teacher_rl": 20, "student_rl": 20, "validation": 10, "test": 10})
    for role in ("test", "validation"):
        assert small.ids[role] == large.ids[role]
    assert small.ids["teacher_rl"] == large.ids["teacher_rl"][:5]


def test_report_holds_counts_and_hashes_of_the_files(tmp_path: Path) -> None:
    report, files = split_rows(tmp_path, make_rows(9, 3), {"teacher_rl": 4, "test": 2, "prompts": 100})
    assert report.counts == {"teacher_rl": 4, "student_rl": 0, "validation": 0, "test": 2, "prompts": 7}
    for role in ROLES:
        raw = (tmp_path / "split" / f"{role}.jsonl").read_bytes()
        assert report.sha256[role] == hashlib.sha256(raw).hexdigest()
    assert all(row.line == int(row.messages[0].content.split()[1]) + 1 for row in files["test"])


def test_too_few_labels_names_both_numbers_and_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"needs 11 labels .*teacher_rl 6.* and the file has 10") as caught:
        split_rows(tmp_path, make_rows(10, 99), {"teacher_rl": 6, "test": 5})
    assert caught.value.details == {"wanted": 11, "labeled": 10}
    assert not (tmp_path / "split").exists()


def test_negative_share_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="cannot be negative"):
        split_rows(tmp_path, make_rows(10, 0), {"teacher_rl": -1})


def test_a_prompt_that_comes_twice_is_refused(tmp_path: Path) -> None:
    rows = make_rows(3, 0)
    with pytest.raises(InvalidData, match="comes twice"):
        split_rows(tmp_path, [*rows, rows[0].model_copy(update={"answer": None})], {"test": 1})
