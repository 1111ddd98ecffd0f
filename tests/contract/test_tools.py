"""Tools through the gateway, asked by the stock `openai` client: vLLM reads the calls of a student that makes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import tool_student
from api_testing import PLAN, Server, jsonl

from api.app import create_app
from s2d.settings import Settings
from s2d.store import students

STUDENT = "student-that-calls"
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "The sum of two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}
#: Forced to call this, the student cannot say what it would say by itself.
NEGATE: Any = {
    "type": "function",
    "function": {
        "name": "negate",
        # Without it vLLM leaves the arguments free, as OpenAI does.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"yes": {"type": "boolean"}},
            "required": ["yes"],
            "additionalProperties": False,
        },
    },
}
QUESTION: Any = [{"role": "user", "content": "What is 2 + 3?"}]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, random_student: Path) -> Iterator[openai.OpenAI]:
    """A client of a gateway whose one student is served by the real vLLM."""
    folder = tmp_path_factory.mktemp("tools")
    student = tool_student.write(folder / "student", random_student)
    python = Path(os.environ["S2D_TEST_VLLM_PYTHON"])
    app = create_app(Settings(state_dir=folder / "state", allow_hub=False, serve_engine="vllm", vllm_python=python))
    with Server(app) as server:
        key = (folder / "state" / "api-key").read_text().strip()
        # No repetition: a server that does not start is to be seen at once.
        with openai.OpenAI(
            api_key=key, base_url=f"{server.url}/v1", max_retries=0, timeout=600, _strict_response_validation=True
        ) as client:
            file = client.files.create(file=("labels.jsonl", jsonl(100)), purpose="fine-tune").id
            options = {"teacher": PLAN["teacher"], "hardware": PLAN["hardware"]}
            job = client.fine_tuning.jobs.create(
                model=str(PLAN["student"]), training_file=file, extra_body={"s2d": options}
            )
            with app.state.context.db.begin() as session:
                students.register(session, student_id=STUDENT, job_id=job.id, path=str(student))
            yield client


def asked(stock: openai.OpenAI, **how: Any) -> Any:
    body = {"model": STUDENT, "messages": QUESTION, "tools": [ADD], "temperature": 0, "max_tokens": 200}
    return stock.chat.completions.create(**(body | how))


def called(message: Any) -> tuple[str, dict[str, Any]]:
    (call,) = message.tool_calls
    assert call.id
    return call.function.name, json.loads(call.function.arguments)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_student_calls_a_tool_by_its_own_choice(stock: openai.OpenAI) -> None:
    for choice in ({}, {"tool_choice": "auto"}, {"tool_choice": "required"}):
        (answer,) = asked(stock, **choice).choices
        assert called(answer.message) == ("add", {"a": 2, "b": 3}), choice
        assert answer.finish_reason == "tool_calls", choice
        assert not answer.message.content, choice


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_stream_has_the_same_call_in_pieces(stock: openai.OpenAI) -> None:
    deltas = [chunk.choices[0] for chunk in asked(stock, stream=True)]
    calls = [call for choice in deltas for call in choice.delta.tool_calls or []]
    assert {call.index for call in calls} == {0}
    assert "".join(call.function.name or "" for call in calls) == "add"
    assert json.loads("".join(call.function.arguments or "" for call in calls)) == {"a": 2, "b": 3}
    assert deltas[-1].finish_reason == "tool_calls"
    assert not any(choice.delta.content for choice in deltas)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_call_is_forced_on_a_student_that_would_make_another(stock: openai.OpenAI) -> None:
    choice = {"type": "function", "function": {"name": "negate"}}
    name, arguments = called(asked(stock, tools=[ADD, NEGATE], tool_choice=choice).choices[0].message)
    assert (name, set(arguments)) == ("negate", {"yes"})
    assert isinstance(arguments["yes"], bool)


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_without_tools_or_with_none_chosen_the_text_is_the_answer(stock: openai.OpenAI) -> None:
    without, none = asked(stock, tools=openai.NOT_GIVEN), asked(stock, tool_choice="none")
    for answer in (without, none):
        assert answer.choices[0].message.content == tool_student.CALL
        assert not answer.choices[0].message.tool_calls
    shown = asked(stock)
    assert shown.usage.prompt_tokens > without.usage.prompt_tokens + 100, "the tools are in the prompt"


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_tools_answer_goes_back_to_the_student(stock: openai.OpenAI) -> None:
    """Its own call too: with longer arguments the prompt is longer."""
    call = asked(stock).choices[0].message.model_dump(include={"role", "content", "tool_calls"})
    result = {"role": "tool", "tool_call_id": call["tool_calls"][0]["id"], "content": "5"}
    lengths = [asked(stock).usage.prompt_tokens]
    for arguments in ('{"a": 2, "b": 3}', '{"a": 2000000, "b": 3}'):
        call["tool_calls"][0]["function"]["arguments"] = arguments
        lengths.append(asked(stock, messages=[*QUESTION, call, result]).usage.prompt_tokens)
    assert lengths[0] + len("assistant tool 5") < lengths[1] < lengths[2]


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_tool_choice_that_names_no_tool_is_the_callers_error(stock: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        asked(stock, tool_choice={"type": "function", "function": {"name": "nothing"}})
