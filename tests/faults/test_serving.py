"""Prompts that are longer than the context (row 18), and a student's server that dies at its work (row 19).

The API is a process of its own, on each database. The servers that are killed are processes too, started by it in
vLLM's place: they speak HTTP, say what they were asked, and stop in the middle of an answer for as long as it takes.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from faults_testing import Fault
from tiny import DEMO, labels, plan_for

from api.problems import MEDIA_TYPE, Problem
from benchmarks.rig import gone, until
from s2d.data import Message, Row, prompt_id, read_rows, write_rows
from s2d.errors import StageFailure
from s2d.events import NewEvent
from s2d.runner.layout import JobLayout
from s2d.runner.local import run_plan
from s2d.runner.task import StageResult
from s2d.serve import embedded
from s2d.store import students
from s2d.store.database import Database

STUDENT = "team/student"
#: Started as an interpreter would be, with vLLM's arguments. What it does is the question that it is asked.
ENGINE = """#!{python}
import json, os, sys, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.answer(200, {{}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        question = body["messages"][-1]["content"]
        if question != "1":
            with open({log!r}, "a") as file:
                file.write(json.dumps([os.getpid(), question, body["stream"]]) + "\\n")
        if question == "hang":
            threading.Event().wait()
        if question == "long":
            self.answer(400, {{"error": {{"message": "This model's maximum context length is 8 tokens."}}}})
        elif body.get("stream"):
            self.stream(endless=question == "endless")
        else:
            message = {{"role": "assistant", "content": "fine"}}
            choice = {{"index": 0, "message": message, "finish_reason": "stop"}}
            self.answer(200, {{"choices": [choice], "usage": {{"completion_tokens": 1}}}})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def stream(self, endless):
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(3):
            self.event({{"delta": {{"content": str(number)}}}})
        if endless:
            threading.Event().wait()
        self.event({{"delta": {{}}, "finish_reason": "stop"}})
        self.wfile.write(b"0\\r\\n\\r\\n")

    def event(self, choice):
        chunk = {{"id": "x", "object": "chat.completion.chunk", "created": 1, "choices": [choice | {{"index": 0}}]}}
        data = b"data: " + json.dumps(chunk).encode() + b"\\n\\n"
        self.wfile.write(b"%x\\r\\n%b\\r\\n" % (len(data), data))
        self.wfile.flush()

    def log_message(self, *_):
        pass

ThreadingHTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    program = tmp_path / "engine"
    program.write_text(ENGINE.format(python=sys.executable, log=str(tmp_path / "asked")))
    program.chmod(0o700)
    return {"serve_engine": "vllm", "vllm_python": program}


def asked(folder: Path) -> list[tuple[int, str, bool]]:
    """Every question that came to a server of ours: its process, what, and whether as a stream."""
    path = folder / "asked"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def register(fault: Fault, path: Path) -> None:
    """The service has this student."""
    job = fault.job()
    database = Database(fault.rig.settings.database)
    with database.begin() as session:
        students.register(session, student_id=STUDENT, job_id=job, path=str(path))
    database.close()


def body(question: str, **fields: Any) -> dict[str, Any]:
    return {"model": STUDENT, "messages": [{"role": "user", "content": question}], **fields}


def ask(fault: Fault, question: str, **fields: Any) -> httpx.Response:
    return fault.client.http.post("/chat/completions", json=body(question, **fields), timeout=120)


def refused(response: httpx.Response, status: int, code: str) -> Problem:
    """The answer is this error, in the one shape."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    told = Problem.model_validate_json(response.content)
    assert (response.status_code, told.status, told.code) == (status, status, code), response.text
    assert (told.error.message, told.error.code) == (told.detail, code)
    return told


@contextmanager
def streamed(fault: Fault, question: str) -> Iterator[Iterator[str]]:
    """The data of the answer's events, as they come."""
    client, fields = fault.client.http, body(question, stream=True)
    with client.stream("POST", "/chat/completions", json=fields, timeout=120) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield (line.removeprefix("data: ") for line in answer.iter_lines() if line)


def kill(pid: int) -> None:
    """As the kernel does when memory is short; the service is told of it by the guard's end."""
    guard = psutil.Process(pid).parent()
    assert guard is not None
    os.kill(pid, signal.SIGKILL)
    assert gone([guard], within_s=60)


@pytest.mark.fault(19)
def test_a_server_that_dies_is_never_asked_twice_and_is_started_again(fault: Fault, tmp_path: Path) -> None:
    register(fault, tmp_path)
    # It dies in the middle of a stream: what came stays, then one error, and no end that looks like one.
    with streamed(fault, "endless") as events:
        chunks = [json.loads(next(events)) for _ in range(3)]
        ((first, *_),) = asked(tmp_path)
        kill(first)
        rest = list(events)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["0", "1", "2"]
    (error,) = [json.loads(event)["error"] for event in rest]
    assert (error["code"], error["type"]) == ("student_server_died", "server_error")
    assert asked(tmp_path) == [(first, "endless", True)]
    # The next request starts it again.
    answer = ask(fault, "fine")
    assert answer.json()["choices"][0]["message"]["content"] == "fine", answer.text
    second = asked(tmp_path)[-1][0]
    assert second != first
    # It dies before the first byte: then the caller may well be told to come again.
    with ThreadPoolExecutor(1) as caller:
        waiting = caller.submit(ask, fault, "hang", stream=True)
        until("it was asked", lambda: asked(tmp_path)[-1][1] == "hang")
        kill(second)
        answer = waiting.result(60)
    refused(answer, 503, "student_server_died")
    assert int(answer.headers["retry-after"]) > 0
    # It has died twice within minutes and is left alone for a moment, which every caller is told.
    answer = ask(fault, "fine")
    refused(answer, 503, "student_server_failed")
    pause_s = int(answer.headers["retry-after"])
    assert 0 < pause_s <= 5
    assert [question for _, question, _ in asked(tmp_path)] == ["endless", "fine", "hang"]
    time.sleep(pause_s)
    with streamed(fault, "fine") as events:
        assert [json.loads(event)["choices"][0]["finish_reason"] for event in list(events)[3:-1]] == ["stop"]
    third = asked(tmp_path)[-1][0]
    assert third not in (first, second)
    assert [question for _, question, _ in asked(tmp_path)] == ["endless", "fine", "hang", "fine"]
    assert psutil.pid_exists(third)


@pytest.mark.fault(18)
def test_a_prompt_that_vllm_finds_too_long_is_the_same_error(fault: Fault, tmp_path: Path) -> None:
    register(fault, tmp_path)
    for stream in (False, True):
        told = refused(ask(fault, "long", stream=stream), 400, "context_length_exceeded")
        assert (told.error.param, "maximum context length is 8 tokens" in told.detail) == ("messages", True)


@pytest.mark.fault(18)
@pytest.mark.parametrize("settings", [{"serve_engine": "transformers"}], ids=["transformers"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_prompt_may_fill_the_context_but_for_one_token(fault: Fault, random_student: Path) -> None:
    register(fault, random_student)
    student = embedded.load(random_student)
    # One token a byte, beside the template's.
    room = student.context - student.prompt_tokens(body(""))
    answer = ask(fault, "x" * (room - 1), max_tokens=50)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (student.context - 1, 1)
    for stream in (False, True):
        told = refused(ask(fault, "x" * room, stream=stream), 400, "context_length_exceeded")
        assert told.error.param == "messages"
        assert (
            f"maximum context length is {student.context} tokens, but the messages take {student.context}"
            in told.detail
        )
    assert ask(fault, "2+2?", max_tokens=1).status_code == 200, "the server has taken no harm"


def problem(characters: int, number: int = 0) -> Row:
    messages = [Message(role="user", content=f"{number:04}".ljust(characters, "+"))]
    return Row(id=prompt_id(messages), messages=messages, answer="1", line=number + 1)


@pytest.mark.fault(18)
def test_training_leaves_out_exactly_what_is_over_the_limit_and_counts_it(tmp_path: Path) -> None:
    from s2d.rollouts.prompts import load_prompts
    from s2d.stages.models import load_tokenizer

    tokenizer = load_tokenizer(str(DEMO / "student"))
    rows = [problem(characters, number) for number, characters in enumerate([20, 40, 41, 42, 900, 40, 5000])]
    write_rows(tmp_path / "rows.jsonl", rows)
    lengths = [len(prompt.ids) for prompt in load_prompts([tmp_path / "rows.jsonl"], tokenizer, 10_000)[0]]
    limit = lengths[1]
    assert (lengths[2], math.dist(lengths[:1], [limit - 20])) == (limit + 1, 0)
    kept, dropped = load_prompts([tmp_path / "rows.jsonl"], tokenizer, limit)
    assert ([prompt.row_id for prompt in kept], dropped) == ([rows[0].id, rows[1].id, rows[5].id], 4)
    with pytest.raises(StageFailure, match=f"the shortest has {lengths[0]} tokens, the plan allows 3") as caught:
        load_prompts([tmp_path / "rows.jsonl"], tokenizer, 3)
    assert caught.value.code == "data"


@pytest.mark.fault(18)
def test_a_stage_trains_on_what_fits_and_its_result_says_how_many_did_not(tmp_path: Path) -> None:
    upload = labels(tmp_path / "labels.jsonl")
    with upload.open("a") as file:
        for number in range(60):
            file.write(json.dumps({"problem": f"{number}" + "+1" * 200, "answer": number + 200}) + "\n")
    stages = {"teacher_rl": {"steps": 1, "prompts_per_step": 4, "group_size": 2, "save_every": 1}}
    plan = plan_for(upload, controls=[], stages=stages)
    done: list[NewEvent] = []

    def over() -> bool:
        return any(event.type == "stage" and event.data["state"] == "succeeded" for event in done)

    outcome = run_plan(plan, upload, tmp_path / "run", done.append, stopping=over)
    assert outcome.state == "interrupted", outcome.error
    layout = JobLayout(tmp_path / "run")
    result = StageResult.model_validate_json(layout.result("teacher_rl").read_text())
    long = [row for row in read_rows(layout.data / "teacher_rl.jsonl") if "+1+1" in row.messages[-1].content]
    assert 0 < len(long) < plan.data.labels.teacher_rl
    assert (result.steps, result.dropped_prompts) == (1, len(long))
