"""The API starts without the libraries that train; benchmarks/startup.py has how long it takes."""

from __future__ import annotations

import subprocess
import sys

HEAVY = ("torch", "transformers", "trl", "datasets", "accelerate", "matplotlib", "sympy", "numpy")


def test_the_api_imports_nothing_heavy() -> None:
    code = "import sys; from api.app import create_app; create_app().openapi(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint(HEAVY)
