"""The ledger in a job's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2d.errors import Conflict
from s2d.plan.graph import Account
from s2d.runner.ledger import Ledger

TEACHER, STUDENT = Account("workflow", "teacher_rl"), Account("workflow", "student_rl")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.jsonl")


def test_a_label_is_spent_once_in_an_arm(ledger: Ledger) -> None:
    ledger.spend(TEACHER, "teacher_rl", ["a", "b"])
    with pytest.raises(Conflict, match="Label b was spent by teacher_rl") as caught:
        ledger.spend(STUDENT, "student_rl", ["c", "b"])
    assert caught.value.code == "label_spent"
    assert [entry.label for entry in ledger.read()] == ["a", "b"], "nothing of a refused spending is kept"


def test_the_same_stage_may_ask_again(ledger: Ledger) -> None:
    ledger.spend(TEACHER, "teacher_rl", ["a", "b"])
    ledger.spend(TEACHER, "teacher_rl", ["a", "b"])
    assert len(ledger.read()) == 2


def test_a_control_spends_the_same_labels_in_its_place(ledger: Ledger) -> None:
    ledger.spend(TEACHER, "teacher_rl", ["a"])
    ledger.spend(Account("direct_grpo", "direct_grpo"), "teacher_rl", ["a"])
    assert [(entry.arm, entry.stage) for entry in ledger.read()] == [TEACHER, ("direct_grpo", "direct_grpo")]


def test_a_line_that_a_kill_cut_short_is_written_again(ledger: Ledger, tmp_path: Path) -> None:
    ledger.spend(TEACHER, "teacher_rl", ["a", "b"])
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes()[:-10])
    assert [entry.label for entry in ledger.read()] == ["a"]
    ledger.spend(TEACHER, "teacher_rl", ["a", "b"])
    assert [entry.label for entry in ledger.read()] == ["a", "b"]
