"""A database of each kind, with a plan and a file to make jobs of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from s2d.store.database import Database, db_now
from s2d.store.tables import FileRow, PlanRow


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    with database.begin() as session:
        session.add(PlanRow(id="plan_1", document={}, created_at=db_now()))
        fields = {"filename": "a", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "labeled": 1, "unlabeled": 0}
        session.add(FileRow(id="file_1", **fields, report={}, created_at=db_now()))
    yield database
    database.close()
