"""docs/errors.md has every code that an answer can carry, api.md every address, faults.md every fault test."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI

from api.problems import _ROUTER_CODES
from s2d.errors import FAILURE_CODES, S2DError

ROOT = Path(__file__).resolve().parents[2]
TREES = [ast.parse(path.read_text()) for room in ("s2d", "api", "worker") for path in (ROOT / room).rglob("*.py")]


def error_classes() -> dict[str, ast.ClassDef]:
    """Every subclass of S2DError by its name, whether or not its module can be imported here."""
    classes = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {S2DError.__name__: next(node for node in classes if node.name == S2DError.__name__)}
    while new := [c for c in classes if c.name not in found and any(getattr(b, "id", "") in found for b in c.bases)]:
        found |= {node.name: node for node in new}
    return found


def codes() -> set[str]:
    classes = error_classes()
    own = [
        node.value
        for definition in classes.values()
        for node in definition.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "code"
    ]
    given = [
        keyword.value
        for tree in TREES
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in classes
        for keyword in call.keywords
        if keyword.arg == "code"
    ]
    constants = {node.value for node in own + given if isinstance(node, ast.Constant)}
    return {str(code) for code in constants} | {*FAILURE_CODES, *_ROUTER_CODES.values()}


def test_every_error_code_is_documented() -> None:
    text = (ROOT / "docs" / "errors.md").read_text()
    assert {"file_in_use", "gate_c1", "student_failed", "too_large"} <= codes()
    assert [code for code in sorted(codes()) if f"| `{code}` |" not in text] == []


def test_every_address_is_documented(app: FastAPI) -> None:
    text = (ROOT / "docs" / "api.md").read_text()
    operations = [f"{method.upper()} {path}" for path, of in app.openapi()["paths"].items() for method in of]
    assert [operation for operation in operations if f"`{operation}`" not in text] == []


def fault_rows() -> dict[int, str]:
    """Row number -> the row of the table in docs/faults.md."""
    lines = (ROOT / "docs" / "faults.md").read_text().splitlines()
    return {int(found[1]): line for line in lines if (found := re.match(r"\| (\d+) \|", line))}


def fault_tests() -> Iterator[tuple[int, str]]:
    """(row, test) of every `fault` mark in tests/faults, a module's own mark included."""
    for path in (ROOT / "tests" / "faults").glob("test_*.py"):
        tree = ast.parse(path.read_text())
        whole = [row for node in tree.body if isinstance(node, ast.Assign) for row in marked(node.value)]
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                yield from ((row, node.name) for one in node.decorator_list for row in marked(one))
                yield from ((row, node.name) for row in whole)


def marked(node: ast.expr) -> list[int]:
    """The numbers in `pytest.mark.fault(…)`."""
    calls = [one for one in ast.walk(node) if isinstance(one, ast.Call)]
    marks = [one for one in calls if ast.unparse(one.func) == "pytest.mark.fault"]
    return [int(ast.literal_eval(argument)) for mark in marks for argument in mark.args]


def test_every_row_of_the_fault_table_names_the_tests_that_hold_it() -> None:
    rows, tests = fault_rows(), list(fault_tests())
    assert sorted(rows) == list(range(1, 23))
    assert {row for row, _ in tests} == set(rows)
    assert [(row, name) for row, name in tests if f"`{name}`" not in rows[row]] == []


def test_every_test_that_the_fault_table_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert named - written == set()
