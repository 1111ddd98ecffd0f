"""API keys, for operators: made, listed, revoked."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field, StringConstraints

from api.conditions import NOT_MODIFIED, IfMatch, IfNoneMatch, as_known, etag
from api.deps import CallerDep, ContextDep
from api.schemas import After, Id, IdempotencyKey, Limit, Page, RequestBody
from s2d.services import keys
from s2d.store.keys import Scope, version
from s2d.store.tables import DEFAULT_TENANT, ApiKeyRow

router = APIRouter(prefix="/keys", tags=["keys"])

Name = Annotated[str, StringConstraints(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Tenant = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class KeyRequest(RequestBody):
    name: Name = Field(description="For people.")
    tenant: Tenant = Field(default=DEFAULT_TENANT, description="Whose files, plans, jobs and students it sees.")
    scopes: list[Scope] = Field(
        min_length=1,
        max_length=4,
        description="`read`; `train` (and read); `infer` (ask students); `admin`, the operator's: everything, and the "
        "keys of every tenant.",
    )
    requests_per_min: int | None = Field(
        default=None, ge=1, le=1_000_000, description="Most requests in a minute; null is without limit."
    )


class Key(BaseModel):
    """An API key without its secret. Times are seconds since the epoch."""

    id: str
    object: Literal["key"] = "key"
    name: str
    tenant: str
    scopes: list[Scope]
    requests_per_min: int | None
    created_at: float
    revoked_at: float | None

    @classmethod
    def of(cls, row: ApiKeyRow) -> Self:
        return cls.model_validate(_fields(row))


class NewKey(Key):
    secret: str = Field(description="The key itself. It is shown this once, and only a hash of it is kept.")


def _fields(row: ApiKeyRow) -> dict[str, object]:
    return {name: getattr(row, name) for name in Key.model_fields if name not in ("object", "scopes")} | {
        "scopes": row.scopes.split()
    }


@router.post("", status_code=201)
def create(ctx: ContextDep, body: KeyRequest, response: Response, idempotency_key: IdempotencyKey = None) -> NewKey:
    """Make a key. Its secret is in this answer and nowhere else, so a repetition with the same `Idempotency-Key` is a
    409 that names the key: revoke it if the answer was lost."""
    row, secret = keys.create(
        ctx,
        name=body.name,
        tenant=body.tenant,
        scopes=body.scopes,
        requests_per_min=body.requests_per_min,
        idempotency_key=idempotency_key,
    )
    response.headers["etag"] = etag(version(row))
    return NewKey.model_validate(_fields(row) | {"secret": secret})


@router.get("")
def list_keys(ctx: ContextDep, after: After = None, limit: Limit = 20) -> Page[Key]:
    """The keys of every tenant, newest first, the revoked ones too."""
    rows, has_more = keys.list_page(ctx, after=after, limit=limit)
    return Page[Key].of(rows, has_more, Key.of)


@router.get("/{key_id}", response_model=Key, responses=NOT_MODIFIED)
def retrieve(ctx: ContextDep, key_id: Id, if_none_match: IfNoneMatch = None) -> Response:
    """One key, of whatever tenant, without its secret."""
    row = keys.get(ctx, key_id)
    return as_known(Key.of(row).model_dump_json().encode(), version(row), if_none_match)


@router.delete("/{key_id}")
def revoke(
    ctx: ContextDep, caller: CallerDep, request: Request, response: Response, key_id: Id, if_match: IfMatch
) -> Key:
    """Revoke a key for good. Other API processes may honour it for five seconds more."""
    row = keys.revoke(ctx, key_id, caller=caller, expected=if_match)
    request.state.callers.forget()
    response.headers["etag"] = etag(version(row))
    return Key.of(row)
