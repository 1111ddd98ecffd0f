"""The address that a request is for, as the router sees it."""

from __future__ import annotations

from starlette.types import Scope


def address(scope: Scope) -> str:
    """The path without the prefix that a proxy in front has (`uvicorn --root-path`), which the router takes off too."""
    path, root = str(scope["path"]), str(scope.get("root_path", "")).rstrip("/")
    return path.removeprefix(root) if root and path.startswith(f"{root}/") else path
