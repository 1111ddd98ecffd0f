"""The published surface is frozen; `python -m api.openapi > tests/api/openapi.json` renews the copy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

FROZEN = Path(__file__).with_name("openapi.json")


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def test_the_surface_is_the_frozen_one(document: dict[str, Any]) -> None:
    assert json.loads(json.dumps(document)) == json.loads(FROZEN.read_text()), __doc__


def test_it_is_served(client: TestClient, document: dict[str, Any]) -> None:
    assert client.get("/openapi.json").json() == json.loads(json.dumps(document))


def test_every_operation_is_described_with_its_answers(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    ids = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            where = f"{method} {path}"
            ids.append(operation["operationId"])
            assert operation["description"], where
            answers = operation["responses"]
            assert "422" not in answers, where
            assert any(status.startswith("2") for status in answers), where
            for status, answer in answers.items():
                if not status.startswith(("2", "304")):
                    assert answer["content"].keys() == {"application/problem+json"}, where
            if path != "/healthz":
                assert operation["security"] == [{"key": []}]
                assert {"400", "401", "413", "500", "503"} <= answers.keys(), where
                assert ("404" in answers) or "{" not in path, where
    assert len(set(ids)) == len(ids)
    assert "Problem" in schemas
    assert "HTTPValidationError" not in schemas


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
            return own + [ref for value in node.values() for ref in references(value)]
        return [ref for value in node for ref in references(value)] if isinstance(node, list) else []

    names = {ref.removeprefix("#/components/schemas/") for ref in references(document)}
    assert names <= document["components"]["schemas"].keys()
