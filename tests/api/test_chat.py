"""Chat completions with the stock client, from a real student behind a real inference server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest
from api_testing import PLAN, Server, assert_problem, jsonl
from processes_testing import descendants

from api.app import create_app
from s2d.runner.processes import alive
from s2d.services import chat as service
from s2d.settings import Settings
from s2d.store import students

QUESTION: list[Any] = [{"role": "user", "content": "2+2?"}]
MOST = 3
#: Never the end-of-message token, so that an answer is as long as asked for.
ENDLESS: dict[str, Any] = {"logit_bias": {"1": -100}, "max_tokens": 5, "temperature": 0}


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory, random_student: Path) -> Iterator[httpx.Client]:
    """A client of a service that has one student, `team/student`. Its server is gone when the service is."""
    settings = Settings(
        state_dir=tmp_path_factory.mktemp("chat") / "state",
        allow_hub=False,
        serve_engine="transformers",
        serve_max_requests=MOST,
    )
    app = create_app(settings)
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    with Server(app) as server:
        key = settings.key_file.read_text().strip()
        headers = {"authorization": f"Bearer {key}"}
        with httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False) as client:
            with app.state.context.db.begin() as session:
                job_id = make_job(client)
                students.register(session, student_id="team/student", job_id=job_id, path=str(random_student))
            yield client
    deadline = time.monotonic() + 10
    while {child.pid for child in psutil.Process().children(recursive=True)} - before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def make_job(client: httpx.Client) -> str:
    file_id = client.post("/v1/files", files={"file": jsonl(100)}).json()["id"]
    plan_id = client.post("/v1/plans", json=PLAN | {"training_file": file_id}).json()["id"]
    return str(client.post("/v1/jobs", json={"plan": plan_id, "training_file": file_id}).json()["id"])


@pytest.fixture
def stock(http: httpx.Client) -> Iterator[openai.OpenAI]:
    key = http.headers["authorization"].removeprefix("Bearer ")
    url = f"{http.base_url}/v1"
    with openai.OpenAI(api_key=key, base_url=url, max_retries=0, _strict_response_validation=True) as client:
        yield client


def test_a_student_answers_whole_and_streamed(stock: openai.OpenAI) -> None:
    (model,) = stock.models.list()
    whole = stock.chat.completions.create(model=model.id, messages=QUESTION, user="me", **ENDLESS)
    assert (whole.model, whole.choices[0].finish_reason) == ("team/student", "length")
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 5
    stream = stock.chat.completions.create(
        model=model.id, messages=QUESTION, stream=True, stream_options={"include_usage": True}, **ENDLESS
    )
    *chunks, last = list(stream)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    # A character that the token limit cut in half is dropped from a stream and replaced in a completion.
    assert text.rstrip("�") == (whole.choices[0].message.content or "").rstrip("�")
    assert last.usage == whole.usage


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"messages": []}, "invalid_request", "messages"),
        ({"messages": [{"role": "wizard", "content": "1"}]}, "invalid_request", "messages.0.role"),
        ({"n": 9}, "invalid_request", "n"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"max_tokens": 0}, "invalid_request", "max_tokens"),
        ({"temperature": 3}, "invalid_request", "temperature"),
        ({"best_of": 2}, "invalid_request", "best_of"),
        ({"messages": [{"role": "user", "content": "x" * 1100}]}, "context_length_exceeded", "messages"),
        ({"model": None}, "invalid_request", "model"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_bad_requests(http: httpx.Client, change: dict[str, Any], code: str, param: str, stream: bool) -> None:
    body = {"model": "team/student", "messages": QUESTION, "stream": stream} | change
    problem = assert_problem(http.post("/v1/chat/completions", json=body), 400, code)
    assert problem["error"]["param"] == param


def test_a_burst_is_answered_or_told_to_come_again(http: httpx.Client) -> None:
    body = {"model": "team/student", "messages": QUESTION, **ENDLESS, "max_tokens": 100}
    with ThreadPoolExecutor(4 * MOST) as pool:
        answers = list(pool.map(lambda _: http.post("/v1/chat/completions", json=body), range(4 * MOST)))
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(answers) - len(refused) >= MOST
    assert refused, "all at once were more than one student may answer"
    for answer in refused:
        assert_problem(answer, 429, "too_many_requests")
        assert int(answer.headers["retry-after"]) > 0
    assert http.post("/v1/chat/completions", json=body).status_code == 200, "its place is free again"


def test_an_unknown_model(http: httpx.Client) -> None:
    body = {"model": "nobody", "messages": QUESTION}
    assert_problem(http.post("/v1/chat/completions", json=body), 404, "model_not_found")


@pytest.mark.parametrize("stream", [False, True])
def test_nobody_is_answered_who_has_left(
    http: httpx.Client, stream: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, cancelled = threading.Event(), threading.Event()

    async def endless(*_: Any) -> Any:
        begun.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    monkeypatch.setattr(service, "stream" if stream else "answer", endless)
    body = {"model": "team/student", "messages": QUESTION, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        http.post("/v1/chat/completions", json=body, timeout=3)
    assert begun.is_set()
    assert cancelled.wait(5)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_deleted_student_is_not_asked_any_more_and_its_server_ends(http: httpx.Client) -> None:
    """The last test of this file: the student is gone after it. Its weights are no job's own, and stay."""
    body = {"model": "team/student", "messages": QUESTION, **ENDLESS}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    serving = descendants(" serve ")
    assert serving
    assert http.delete("/v1/models/team/student").json() == {"id": "team/student", "object": "model", "deleted": True}
    assert_problem(http.post("/v1/chat/completions", json=body), 404, "model_not_found")
    deadline = time.monotonic() + 20
    while any(map(alive, serving)):
        assert time.monotonic() < deadline
        time.sleep(0.1)
