"""However a request and its repetitions fall together, there is one result; on both databases."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from s2d.store import repeats
from s2d.store.database import Database
from s2d.store.ids import new_id
from s2d.store.repeats import WINDOW_S, Sending
from s2d.store.tables import IdempotencyRow

AT_ONCE = 6


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


def served(db: Database, sending: Sending) -> str:
    """As `s2d.services.jobs.create` does it."""
    with db.begin() as session:
        known = repeats.recall(session, sending)
        if known is None:
            known = new_id("job")
            repeats.remember(session, sending, known)
        return known


@pytest.mark.parametrize("stale", [False, True])
def test_a_request_and_its_repetitions_at_once_have_one_result(db: Database, stale: bool) -> None:
    for turn in range(10):
        name = f"f{turn}"
        if stale:
            served(db, Sending("s", name, again=True))
            with db.begin() as session:
                session.execute(update(IdempotencyRow).values(created_at=IdempotencyRow.created_at - WINDOW_S - 1))
        sendings = [Sending("s", name, again=number > 0) for number in range(AT_ONCE)]
        together = threading.Barrier(AT_ONCE)

        def serve(sending: Sending, together: threading.Barrier = together) -> str:
            together.wait()
            return served(db, sending)

        with ThreadPoolExecutor(AT_ONCE) as pool:
            assert len(set(pool.map(serve, sendings))) == 1


def test_two_wishes_at_once_are_two(db: Database) -> None:
    sendings = [Sending("s", "f", again=False) for _ in range(2)]
    assert len({served(db, sending) for sending in sendings}) == 2
