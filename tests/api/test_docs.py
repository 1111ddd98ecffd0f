"""docs/errors.md has every code that an answer can carry, docs/api.md every address."""

from __future__ import annotations

import ast
import re
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


def test_every_test_that_the_fault_table_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faults.md").read_text()))
    written = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert named - written == set()
