"""A database of each kind, with a plan and a file to make jobs of."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from store_testing import filled

from s2d.store.database import Database


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with filled(database_url) as database:
        yield database
