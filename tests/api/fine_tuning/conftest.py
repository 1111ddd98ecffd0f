"""The stock `openai` client with its own strict checks, over a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from api_testing import PLAN, Server, jsonl
from fastapi import FastAPI
from fine_tuning_testing import OPTIONS
from openai.types.fine_tuning import FineTuningJob

from s2d.services.context import Context
from s2d.settings import Settings


@pytest.fixture
def key(server: Server, settings: Settings) -> str:  # noqa: ARG001 - the server makes it
    return settings.key_file.read_text().strip()


@pytest.fixture
def stock(server: Server, key: str) -> Iterator[openai.OpenAI]:
    url = f"{server.url}/v1"
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0, _strict_response_validation=True) as client:
        yield client


@pytest.fixture
def ctx(app: FastAPI, server: Server) -> Context:  # noqa: ARG001 - the server opens it
    return app.state.context  # type: ignore[no-any-return]


@pytest.fixture
def file_id(stock: openai.OpenAI) -> str:
    return stock.files.create(file=("labels.jsonl", jsonl(100)), purpose="fine-tune").id


@pytest.fixture
def make(stock: openai.OpenAI, file_id: str) -> Callable[..., FineTuningJob]:
    def make(s2d: dict[str, Any] | None = None, **how: Any) -> FineTuningJob:
        body = {"model": PLAN["student"], "training_file": file_id, "extra_body": {"s2d": OPTIONS | (s2d or {})}}
        return stock.fine_tuning.jobs.create(**(body | how))  # type: ignore[arg-type]

    return make


@pytest.fixture
def body(file_id: str) -> dict[str, Any]:
    """The same as plain JSON."""
    return {"model": PLAN["student"], "training_file": file_id, "s2d": OPTIONS}
