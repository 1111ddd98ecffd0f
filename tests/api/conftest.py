"""The API under test: in this process for most of it, behind a real uvicorn server where sockets matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_testing import PLAN, Server, jsonl
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api.app import create_app
from s2d.services.context import Context
from s2d.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        state_dir=tmp_path / "state",
        allow_hub=False,
        max_body_bytes=20_000,
        max_upload_bytes=200_000,
        serve_engine="transformers",
    )


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI, settings: Settings) -> Iterator[TestClient]:
    """Sends the first key. Errors of ours come back as answers, as they would from a server."""
    with TestClient(app, raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {settings.key_file.read_text().strip()}"
        yield client


@pytest.fixture
def ctx(app: FastAPI, client: TestClient) -> Context:  # noqa: ARG001 - the client opens it
    return app.state.context  # type: ignore[no-any-return]


@pytest.fixture
def upload(client: TestClient) -> Callable[..., httpx.Response]:
    def send(content: bytes | None = None, *, name: str = "labels.jsonl", purpose: str = "fine-tune") -> httpx.Response:
        body = jsonl(100) if content is None else content
        return client.post("/v1/files", files={"file": (name, body)}, data={"purpose": purpose})

    return send


@pytest.fixture
def job_body(client: TestClient, upload: Callable[..., httpx.Response]) -> dict[str, str]:
    """What `POST /v1/jobs` takes: a plan, and the file that it was made for."""
    file_id = upload().json()["id"]
    plan = client.post("/v1/plans", json=PLAN | {"training_file": file_id})
    assert plan.status_code == 201, plan.text
    return {"plan": plan.json()["id"], "training_file": file_id}


@pytest.fixture
def job(client: TestClient, job_body: dict[str, str]) -> dict[str, Any]:
    return client.post("/v1/jobs", json=job_body).json()  # type: ignore[no-any-return]


@pytest.fixture
def server(app: FastAPI) -> Iterator[Server]:
    with Server(app) as server:
        yield server


@pytest.fixture
def remote(server: Server, settings: Settings) -> Iterator[httpx.Client]:
    """A client of the real server, with the first key."""
    headers = {"authorization": f"Bearer {settings.key_file.read_text().strip()}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=20, trust_env=False) as client:
        yield client
