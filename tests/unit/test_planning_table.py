"""docs/planning.md says what the planner says now."""

from __future__ import annotations

import pytest

from benchmarks import planning_table
from benchmarks.planning_table import CASES, PAGE, SOURCES, rows_of, tables, written


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return tables()


def test_the_page_is_what_the_planner_says(made: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning_table, "tables", lambda: made)
    page = PAGE.read_text()
    assert page == written(page), "run `python -m benchmarks.planning_table`"
    for name, text in made.items():
        assert text
        assert f"<!-- {name} -->\n{text}\n<!-- end -->" in page


def test_there_are_ten_answers_and_every_no_has_its_reason(made: dict[str, str]) -> None:
    assert len(made["answers"].splitlines()) == 2 + len(CASES) == 12
    refused = [number for number, case in enumerate(CASES, 1) if not rows_of(case)[0].feasible]
    assert [line.partition(":")[0] for line in made["refusals"].splitlines()] == [f"- {number}" for number in refused]


def test_every_gpu_has_a_source() -> None:
    assert {case.gpu for case in CASES if case.gpu} == SOURCES.keys()
