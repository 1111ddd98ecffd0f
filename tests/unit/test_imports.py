"""The rooms' rules: who may import whom, and what must start without GPU libraries."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "vllm", "matplotlib")

#: Room -> rooms of s2d that it may import. `errors`, `events`, `atomic` and `settings` are not rooms.
ALLOWED = {
    "observe": set(),
    "verifiers": set(),
    "data": {"verifiers"},
    "plan": {"verifiers"},
    "probe": {"data", "evaluate", "plan", "rollouts", "runner", "stages", "verifiers"},
    "store": {"observe", "plan"},
    "rollouts": {"data", "plan"},
    "runner": {"data", "observe", "plan"},
    "evaluate": {"data", "plan", "rollouts", "verifiers"},
    "stages": {"data", "evaluate", "observe", "plan", "rollouts", "runner", "verifiers"},
    "report": {"data", "evaluate", "plan", "runner"},
    "serve": set(),
    "services": {"data", "plan", "serve", "store", "verifiers"},
    "demo": set(),
    "embedded": {"serve"},
    "cli": {"data", "demo", "embedded", "plan", "runner", "services", "report", "store"},
}


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_every_room_is_named_here() -> None:
    rooms = {path.parent.name for path in (ROOT / "s2d").glob("*/__init__.py")}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("room", sorted(ALLOWED))
def test_a_room_imports_only_what_lies_before_it(room: str) -> None:
    for path in (ROOT / "s2d" / room).rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("s2d.")} & set(ALLOWED)
        assert rooms <= ALLOWED[room] | {room}, f"{path.relative_to(ROOT)} imports {rooms - ALLOWED[room] - {room}}"


@pytest.mark.parametrize(
    ("package", "forbidden"), [("s2d", {"api", "worker"}), ("api", {"worker"}), ("worker", {"api"})]
)
def test_packages_point_one_way(package: str, forbidden: set[str]) -> None:
    for path in (ROOT / package).rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        assert not tops & forbidden, f"{path.relative_to(ROOT)} imports {tops & forbidden}"


@pytest.mark.parametrize(
    "module",
    ["s2d.plan.service", "s2d.data.split", "s2d.store.jobs", "s2d.verifiers.pool", "s2d.runner.pipeline", "api.app",
     "worker.supervisor", "s2d.cli"],
)  # fmt: skip
def test_no_gpu_library_is_loaded(module: str) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert shown.stdout.strip() == "[]"
