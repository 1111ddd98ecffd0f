"""The OpenAPI document; `python -m api.openapi > tests/api/openapi.json` renews the frozen copy."""

from __future__ import annotations

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.access import OPEN_PATHS
from api.problems import MEDIA_TYPE, Problem

DESCRIPTION = """Spend labels on the teacher, distill into the student.

Upload labels (`POST /v1/files`), ask for a plan (`POST /v1/plans`), start a job (`POST /v1/jobs`), follow its events,
and ask the student that it makes (`POST /v1/chat/completions`). Files, models and chat have OpenAI's shape, so that
the stock `openai` client works."""
_REF = "#/components/schemas/{model}"
#: What every endpoint may answer; what each code means is in docs/errors.md.
_EVERYWHERE = {
    "400": "The request cannot be carried out as it stands.",
    "401": "No API key, or one that is unknown or revoked.",
    "413": "The request is larger than what is accepted.",
    "500": "An error of ours; the log has it under the answer's x-request-id.",
    "default": "Any other error, in the same shape.",
    "503": "A part that this needs is not up. Try again after `Retry-After` seconds.",
}
_OPEN = {status: _EVERYWHERE[status] for status in ("503", "default")}
_BY_ID = {"404": "There is no such thing."}
_BY_STATE = {"409": "Its state does not allow this, or the idempotency key was used for another body."}
_BY_VERSION = {"412": "It is not any more as `If-Match` says; nothing was changed."}
_ETAG = {"description": "The version, for `If-None-Match` and `If-Match`.", "schema": {"type": "string"}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The document, with the one error shape and the API key at every endpoint, neither of which FastAPI can see."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes)
        problem = Problem.model_json_schema(ref_template=_REF)
        components = document["components"]
        components["schemas"] |= problem.pop("$defs") | {"Problem": problem}
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, methods in document["paths"].items():
            for method, operation in methods.items():
                _complete(operation, path, method)
        app.openapi_schema = document
    return app.openapi_schema


def _complete(operation: dict[str, Any], path: str, method: str) -> None:
    operation["security"] = [] if path in OPEN_PATHS else [{"key": []}]
    told = _OPEN if path in OPEN_PATHS else _EVERYWHERE | _particular(operation, path, method)
    content = {MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status, description in sorted(told.items()):
        operation["responses"][status] = {"description": description, "content": content}
    if "if-none-match" in _headers(operation):
        for status in ("200", "304"):
            operation["responses"][status]["headers"] = {"ETag": _ETAG}


def _particular(operation: dict[str, Any], path: str, method: str) -> dict[str, str]:
    headers = _headers(operation)
    names = "{" in path or method == "post"
    told = _BY_ID if names else {}
    if headers & {"if-match", "idempotency-key"}:
        told = told | _BY_STATE
    return told | _BY_VERSION if "if-match" in headers else told


def _headers(operation: dict[str, Any]) -> set[str]:
    return {one["name"] for one in operation.get("parameters", []) if one["in"] == "header"}


if __name__ == "__main__":
    from api.app import create_app

    print(json.dumps(create_app().openapi(), indent=1, sort_keys=True, ensure_ascii=False))
