"""The students that can be asked."""

from __future__ import annotations

from typing import Literal, Self

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from api.conditions import NOT_MODIFIED, IfMatch, IfNoneMatch, as_known
from api.deps import ChatDep, ContextDep
from api.schemas import Id
from s2d.services import students
from s2d.store.students import version
from s2d.store.tables import StudentRow

router = APIRouter(prefix="/models", tags=["models"])


class Model(BaseModel):
    """A student, under the name that chat completions take as `model`."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Seconds since the epoch.")
    owned_by: Literal["s2d"] = "s2d"
    job: str = Field(description="The job that made it.")
    arm: str = Field(description="What it is in the job: `workflow`, `base`, or the control's name.")

    @classmethod
    def of(cls, row: StudentRow) -> Self:
        return cls(id=row.id, created=int(row.created_at), job=row.job_id, arm=row.arm)


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class ModelDeleted(BaseModel):
    id: str
    object: Literal["model"] = "model"
    deleted: Literal[True] = True


@router.get("")
def list_models(ctx: ContextDep) -> ModelList:
    """All students, newest first."""
    return ModelList(data=[Model.of(row) for row in students.list_all(ctx)])


@router.get("/{model_id:path}", response_model=Model, responses=NOT_MODIFIED)
def retrieve(ctx: ContextDep, model_id: Id, if_none_match: IfNoneMatch = None) -> Response:
    """One student."""
    row = students.get(ctx, model_id)
    return as_known(Model.of(row).model_dump_json().encode(), version(row), if_none_match)


@router.delete("/{model_id:path}")
def delete(ctx: ContextDep, chat: ChatDep, model_id: Id, if_match: IfMatch) -> ModelDeleted:
    """Delete a student: it can no longer be asked, and its weights go, unless they are those of a base model."""
    students.delete(ctx, model_id, if_match)
    chat.retire(ctx, model_id)
    return ModelDeleted(id=model_id)
