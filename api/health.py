"""Whether the service is up; the one thing that needs no key."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel

from api.deps import ContextDep
from s2d import __version__
from s2d.services.health import check

router = APIRouter(tags=["health"])


class Health(BaseModel):
    status: Literal["ok"] = "ok"
    version: str = __version__


@router.get("/healthz")
def healthz(ctx: ContextDep) -> Health:
    """Answers once the database does, else 503."""
    check(ctx)
    return Health()
