"""A student behind a real inference server: transformers' own, and vLLM where an interpreter with it is named."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from processes_testing import descendants

from s2d.errors import InvalidRequest
from s2d.serve import Asked, Forwarder, Lease, Limits, ServeSettings, StudentServers, checked

QUESTION = [{"role": "user", "content": "2+2?"}]
#: Never a special token, so that an answer is as long as asked for and all of it is content.
ENDLESS = {"logit_bias": {"0": -100, "1": -100, "2": -100}}

T = TypeVar("T")
Ask = Callable[[Forwarder, Lease], Coroutine[Any, Any, Any]]


@pytest.fixture(
    scope="module",
    params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)],
)
def servers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StudentServers]:
    vllm_python = os.environ["S2D_TEST_VLLM_PYTHON"] if request.param == "vllm" else None
    log_dir = tmp_path_factory.mktemp("logs")
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    pool = StudentServers(ServeSettings(engine=request.param, vllm_python=vllm_python, log_dir=log_dir))
    yield pool
    pool.close()
    deadline = time.monotonic() + 10
    while left := {p.pid for p in psutil.Process().children(recursive=True)} - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.fixture
def ask(servers: StudentServers, random_student: Path) -> Callable[[Ask], Any]:
    def run(call: Ask) -> Any:
        async def main() -> Any:
            forwarder = Forwarder(Limits(10, 120, 120, 120))
            return await call(forwarder, await servers.acquire_async("team/student", random_student))

        return asyncio.run(main())

    return run


def body(**more: Any) -> Asked:
    return checked({"model": "team/student", "messages": QUESTION, "max_tokens": 5, **ENDLESS, **more})


async def completion(forwarder: Forwarder, lease: Lease, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await forwarder.complete(lease, body(**more)))
    return answer


async def payloads(events: AsyncIterator[bytes]) -> AsyncIterator[str]:
    async for event in events:
        for line in event.decode().split("\n"):
            if line:
                yield line.removeprefix("data: ")


def server_processes(lease: Lease) -> list[psutil.Process]:
    port = lease.base_url.rpartition(":")[2]
    return descendants(port)


async def in_slices(processes: list[psutil.Process], work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives, while the processes run for 20 ms at a time; they are frozen afterwards.

    On a busy machine a server may otherwise send a whole answer before its reader sees the beginning.
    """
    task = asyncio.ensure_future(work)
    while not task.done():
        for process in processes:
            process.resume()
        await asyncio.sleep(0.02)
        for process in processes:
            process.suspend()
        await asyncio.wait([task], timeout=0.1)
    return task.result()


def test_a_completion_is_what_a_strict_client_accepts(ask: Callable[[Ask], Any]) -> None:
    reply = ask(lambda forwarder, lease: completion(forwarder, lease, temperature=0))
    parsed = ChatCompletion.model_validate(reply, strict=True)
    assert parsed.model == "team/student"
    assert parsed.choices[0].finish_reason == "length"
    assert parsed.choices[0].message.content
    assert parsed.usage is not None
    assert parsed.usage.completion_tokens == 5


def test_stream_and_completion_agree(ask: Callable[[Ask], Any]) -> None:
    options = body(temperature=0, stream_options={"include_usage": True})

    async def both(forwarder: Forwarder, lease: Lease) -> tuple[dict[str, Any], list[str]]:
        events = [data async for data in payloads(await forwarder.stream(lease, options))]
        return await completion(forwarder, lease, temperature=0), events

    whole, (*events, done) = ask(both)
    *chunks, usage = [ChatCompletionChunk.model_validate(json.loads(data), strict=True) for data in events]
    assert done == "[DONE]"
    assert {chunk.model for chunk in chunks} == {"team/student"}
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    # A character that the token limit cut in half is dropped from a stream and replaced in a completion.
    assert whole["choices"][0]["message"]["content"].rstrip("�") == text.rstrip("�")
    assert usage.usage is not None
    assert usage.usage.completion_tokens == whole["usage"]["completion_tokens"]


def test_sampling_is_sampling_and_a_seed_repeats_it(ask: Callable[[Ask], Any]) -> None:
    async def texts(forwarder: Forwarder, lease: Lease) -> list[str]:
        bodies = [body(max_tokens=30), body(max_tokens=30), body(max_tokens=30, seed=7), body(max_tokens=30, seed=7)]
        return [
            json.loads(await forwarder.complete(lease, each))["choices"][0]["message"]["content"] for each in bodies
        ]

    one, other, seeded, again = ask(texts)
    assert one != other
    assert seeded == again


def test_the_context_is_a_limit(ask: Callable[[Ask], Any], random_student: Path) -> None:
    context = json.loads((random_student / "config.json").read_text())["max_position_embeddings"]
    long = [{"role": "user", "content": "x" * context}]
    with pytest.raises(InvalidRequest) as caught:
        ask(lambda forwarder, lease: forwarder.complete(lease, body(messages=long)))
    assert caught.value.code == "context_length_exceeded"


def test_without_a_limit_an_answer_fills_the_context_exactly(ask: Callable[[Ask], Any], random_student: Path) -> None:
    context = json.loads((random_student / "config.json").read_text())["max_position_embeddings"]
    reply = ask(lambda forwarder, lease: completion(forwarder, lease, max_tokens=None))
    assert reply["usage"]["total_tokens"] == context


def test_a_stop_sequence_is_not_in_the_answer(ask: Callable[[Ask], Any]) -> None:
    async def stopped(forwarder: Forwarder, lease: Lease) -> tuple[str, str, dict[str, Any]]:
        options = {"temperature": 0, "max_tokens": 60}
        free = (await completion(forwarder, lease, **options))["choices"][0]["message"]["content"]
        stop = next(character for character in free[1:] if character.isascii() and character.isprintable())
        return free, stop, (await completion(forwarder, lease, stop=stop, **options))["choices"][0]

    free, stop, choice = ask(stopped)
    assert choice["message"]["content"] == free[: free.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_a_server_killed_mid_stream_ends_in_an_error_and_is_started_again(
    ask: Callable[[Ask], Any], servers: StudentServers
) -> None:
    async def killed(forwarder: Forwarder, lease: Lease) -> list[str]:
        processes = server_processes(lease)

        async def begun() -> tuple[str, AsyncIterator[str]]:
            events = payloads(await forwarder.stream(lease, body(max_tokens=900)))
            return await anext(events), events

        seen, events = await in_slices(processes, begun())
        for process in processes:
            process.kill()
        return [seen] + [data async for data in events]

    *_, last = ask(killed)
    assert json.loads(last)["error"]["code"] == "student_server_died"
    assert ask(completion)["usage"]["completion_tokens"] == 5
    assert servers.running() == ["team/student"]
