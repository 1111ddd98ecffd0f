"""A label is spent once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import dataclasses

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from store_testing import held, new_job

from s2d.errors import Conflict
from s2d.plan.graph import Account
from s2d.store import ledger
from s2d.store.database import Database
from s2d.store.events import LeaseLost
from s2d.store.tables import LedgerRow


def test_a_label_is_spent_once(db: Database) -> None:
    claim = held(db, new_job(db))
    teacher, student = Account("workflow", "teacher_rl"), Account("workflow", "student_rl")
    with db.begin() as session:
        ledger.spend(session, claim, teacher, "teacher_rl", ["a", "b"])
        ledger.spend(session, claim, Account("workflow", "evaluate"), "test", ["c"])
    with db.begin() as session:
        ledger.spend(session, claim, teacher, "teacher_rl", ["a", "b"])
    with pytest.raises(Conflict, match="Label b was spent by teacher_rl"), db.begin() as session:
        ledger.spend(session, claim, student, "student_rl", ["d", "b"])
    with db.read() as session:
        assert ledger.spent(session, claim.job_id) == [
            ("workflow", "evaluate", "test", 1),
            ("workflow", "teacher_rl", "teacher_rl", 2),
        ]


def test_the_database_itself_refuses_a_label_that_is_spent_twice(db: Database) -> None:
    claim = held(db, new_job(db))
    row = {"job_id": claim.job_id, "arm": "workflow", "label_id": "a", "role": "teacher_rl"}
    with db.begin() as session:
        session.execute(insert(LedgerRow), [{**row, "stage": "teacher_rl"}])
    with pytest.raises(IntegrityError), db.begin() as session:
        session.execute(insert(LedgerRow), [{**row, "stage": "student_rl"}])


def test_a_control_has_an_account_of_its_own(db: Database) -> None:
    claim = held(db, new_job(db))
    with db.begin() as session:
        ledger.spend(session, claim, Account("workflow", "teacher_rl"), "teacher_rl", ["a"])
        ledger.spend(session, claim, Account("direct_grpo", "direct_grpo"), "teacher_rl", ["a"])
    with db.read() as session:
        assert [one.arm for one in ledger.spent(session, claim.job_id)] == ["direct_grpo", "workflow"]


def test_a_worker_that_lost_its_lease_spends_no_label(db: Database) -> None:
    claim = held(db, new_job(db))
    stale = dataclasses.replace(claim, epoch=claim.epoch - 1)
    with pytest.raises(LeaseLost), db.begin() as session:
        ledger.spend(session, stale, Account("workflow", "teacher_rl"), "teacher_rl", ["a"])
