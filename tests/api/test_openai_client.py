"""The stock `openai` client, with its own strict checks of every answer."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from api_testing import Server, jsonl
from fastapi.testclient import TestClient

from s2d.serve.request import NO_EFFECT
from s2d.services.context import Context
from s2d.settings import Settings
from s2d.store import students


@pytest.fixture
def stock(server: Server, settings: Settings) -> Iterator[openai.OpenAI]:
    key = settings.key_file.read_text().strip()
    url = f"{server.url}/v1"
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_files(stock: openai.OpenAI) -> None:
    made = [stock.files.create(file=("labels.jsonl", jsonl(n)), purpose="fine-tune") for n in (1, 2, 3)]
    assert made[0].status == "processed"
    assert made[0].model_extra is not None
    assert made[0].model_extra["report"]["rows"] == 1
    assert stock.files.retrieve(made[0].id) == made[0]
    assert stock.files.content(made[2].id).read() == jsonl(3)
    # Two pages, which the client turns by itself.
    assert [file.id for file in stock.files.list(limit=2, order="asc")] == [file.id for file in made]
    assert stock.files.delete(made[0].id).deleted
    with pytest.raises(openai.NotFoundError) as missing:
        stock.files.retrieve(made[0].id)
    assert (missing.value.code, missing.value.param) == ("file_not_found", "file_id")
    assert missing.value.request_id


def test_models(stock: openai.OpenAI, client: TestClient, ctx: Context, job: dict[str, str]) -> None:
    assert client.get("/v1/models").json()["data"] == []
    with ctx.db.begin() as session:
        students.register(session, student_id="team/student", job_id=job["id"], path="/nowhere")
    assert [model.id for model in stock.models.list()] == ["team/student"]
    assert stock.models.retrieve("team/student").owned_by == "s2d"
    with pytest.raises(openai.NotFoundError):
        stock.models.retrieve("other")


def test_errors(stock: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        stock.files.create(file=("labels.csv", b"question,answer\n1,2\n"), purpose="fine-tune")
    assert (bad.value.code, bad.value.param, bad.value.type) == ("invalid_data", "file", "invalid_request_error")
    with pytest.raises(openai.AuthenticationError):
        stock.with_options(api_key="s2d-wrong").models.list()
    with pytest.raises(openai.NotFoundError) as unknown:
        stock.chat.completions.create(model="none", messages=[{"role": "user", "content": "1+1?"}])
    assert unknown.value.code == "model_not_found"


def test_fields_without_effect_are_taken() -> None:
    """What the serve room drops must get through our own schema to it."""
    from api.openai.chat import ChatCompletionRequest

    assert ChatCompletionRequest.model_fields.keys() >= NO_EFFECT
