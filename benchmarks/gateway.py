"""What s2d's gateway costs: vLLM asked directly, through s2d, and through two plain pass-throughs, in one run.

`python -m benchmarks.gateway --vllm-python .venv-vllm/bin/python`. All ask the same vLLM for the same answers of the
demo's student, in turn, round after round; the ratios are of one round, so that a noisy neighbour hits both sides. s2d
checks the key, the scopes, a rate and the limits of the student as it does for users.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import uvloop

from benchmarks.output import here, publish
from benchmarks.rig import DEMO, stored_job, until
from s2d.embedded.part import Command, Part
from s2d.embedded.ports import claim_port, local_url
from s2d.embedded.service import api_command
from s2d.serve.engine import VllmEngine
from s2d.serve.upstream import Gone, Limits, Pace, Upstream
from s2d.services.context import open_context
from s2d.settings import Settings
from s2d.store import keys, students

STUDENT = "student-bench"
STREAMS = (1, 8, 64)
#: Tokens of an answer, and answers of one stream in a round, by the number of streams.
TOKENS = 128
ANSWERS = {1: 12, 8: 6, 64: 4}
RESULTS = Path(__file__).parent / "results"
TRIES = 3
LIMITS = Limits(10, 120, 60, 600)


@dataclass(frozen=True)
class Target:
    """Something to ask. `process` is the gateway's own; vLLM has none in front of it."""

    name: str
    url: str
    key: str | None
    process: psutil.Process | None


@dataclass
class Round:
    """One target, so many streams: tokens a second, seconds to the first byte of each answer, the gateway's CPU."""

    tokens_per_s: float
    first_byte_s: list[float]
    cpu_us_per_token: float | None


async def ask(upstream: Upstream, target: Target, body: bytes) -> tuple[float, int]:
    """Seconds to the first byte, and the tokens of the answer."""
    began = time.perf_counter()
    reply = await upstream.post(f"{target.url}/v1/chat/completions", body, target.key)
    try:
        assert reply.is_success, await reply.read()
        whole = bytearray(await reply.part())
        first = time.perf_counter() - began
        while part := await reply.part():
            whole += part
    finally:
        reply.close()
    assert whole.endswith(b"data: [DONE]\n\n"), bytes(whole[-300:])
    return first, json.loads(whole.rsplit(b"data: ", 2)[1])["usage"]["completion_tokens"]


async def one_round(upstream: Upstream, target: Target, streams: int) -> Round:
    body = json.dumps(
        {
            "model": STUDENT,
            "messages": [{"role": "user", "content": "12+34="}],
            "max_tokens": TOKENS,
            "temperature": 0,
            # Never an end, so that each answer is as long.
            "logit_bias": {"260": -100},
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()

    async def stream() -> list[tuple[float, int]]:
        return [await ask(upstream, target, body) for _ in range(ANSWERS[streams])]

    cpu, began = _cpu_s(target), time.perf_counter()
    answers = [answer for some in await asyncio.gather(*(stream() for _ in range(streams))) for answer in some]
    took_s, tokens = time.perf_counter() - began, sum(count for _, count in answers)
    assert tokens == TOKENS * ANSWERS[streams] * streams
    spent = None if cpu is None else (float(_cpu_s(target) or 0) - cpu) / tokens * 1e6
    return Round(tokens / took_s, [first for first, _ in answers], spent)


async def _whole_round(upstream: Upstream, target: Target, streams: int) -> Round:
    """A round of a plain pass-through is repeated when it breaks an answer off, as httpx' does now and then with many
    streams; the direct answers and s2d's must be whole the first time."""
    for _ in range(TRIES if target.name.startswith("FastAPI") else 0):
        try:
            return await one_round(upstream, target, streams)
        except Gone as error:
            print(f"{target.name}, {streams} streams: {error}; the round is repeated", file=sys.stderr)
    return await one_round(upstream, target, streams)


def _cpu_s(target: Target) -> float | None:
    return None if target.process is None else sum(target.process.cpu_times()[:2])


async def measure(targets: list[Target], rounds: int) -> dict[int, dict[str, list[Round]]]:
    """By streams, by target. Each round begins with another target, and a first one warms up and is not kept."""
    found: dict[int, dict[str, list[Round]]] = {}
    # Each part as it comes: the client is not what is measured.
    upstream = Upstream(LIMITS, Pace(most_s=0.0))
    for streams in STREAMS:
        found[streams] = {target.name: [] for target in targets}
        for number in range(rounds + 1):
            turn = number % len(targets)
            for target in targets[turn:] + targets[:turn]:
                result = await _whole_round(upstream, target, streams)
                if number:
                    found[streams][target.name].append(result)
            print(f"{streams} streams, round {number} of {rounds}", file=sys.stderr)
    return found


# --- the servers ----------------------------------------------------------------------------------------------------


@contextmanager
def running(part: Part, url: str, headers: dict[str, str], path: str) -> Iterator[psutil.Process]:
    """The part's own process, once it answers."""

    def answers() -> bool:
        assert part.alive(), part.log_tail(40)
        try:
            return httpx.get(url + path, headers=headers, timeout=2, trust_env=False).status_code < 500
        except httpx.TransportError:
            return False

    part.start()
    try:
        until(f"{part.name} answers", answers, 300)
        guard = psutil.Process(part.pid)
        yield guard.children()[0]
    finally:
        part.stop()


@contextmanager
def everything(vllm_python: Path, folder: Path) -> Iterator[list[Target]]:
    with ExitStack() as stack:
        launch = VllmEngine(vllm_python, 0.9).launch(STUDENT, DEMO / "student")
        vllm = Part(Command("vllm", launch.command, launch.environment, folder, 10), folder)
        stack.enter_context(running(vllm, launch.base_url, {}, "/health"))
        targets = [Target("direct", launch.base_url, None, None)]
        settings = _state(folder, launch.base_url)
        url, key = local_url(settings.host, settings.port), _key(settings)
        api = Part(api_command(settings), folder)
        process = stack.enter_context(running(api, url, {}, "/healthz"))
        targets.append(Target("s2d", url, key, process))
        for name in ("httpx", "aiohttp"):
            port = claim_port("127.0.0.1", 0)
            argv = (sys.executable, "-m", "uvicorn", f"benchmarks.passthrough:with_{name}", "--port", str(port))
            quiet = ("--no-access-log", "--log-level", "warning")
            root = Path(__file__).resolve().parents[1]
            part = Part(Command(name, argv + quiet, {"UPSTREAM": launch.base_url}, root, 5), folder)
            process = stack.enter_context(running(part, f"http://127.0.0.1:{port}", {}, "/docs"))
            targets.append(Target(f"FastAPI + {name}", f"http://127.0.0.1:{port}", None, process))
        yield targets


def _state(folder: Path, vllm_url: str) -> Settings:
    """A state folder whose student is what the vLLM serves."""
    settings = Settings(state_dir=folder / "state", vllm_url=vllm_url, port=claim_port("127.0.0.1", 0))
    ctx = open_context(settings)
    with ctx.db.begin() as session:
        job = stored_job(session)
        students.register(session, student_id=STUDENT, job_id=job.id, path=str(DEMO / "student"))
    ctx.db.close()
    return settings


def _key(settings: Settings) -> str:
    """A user's key: it may ask students, and so often."""
    ctx = open_context(settings)
    with ctx.db.begin() as session:
        _, secret = keys.create(session, "bench", scopes=("infer",), requests_per_min=1_000_000)
    ctx.db.close()
    return secret


# --- what is told ---------------------------------------------------------------------------------------------------


def summary(found: dict[int, dict[str, list[Round]]]) -> dict[str, Any]:
    """By streams and target; ratios and differences are to the direct answers of the same round."""
    return {
        str(streams): {
            name: {
                "tokens_per_s": statistics.median(r.tokens_per_s for r in rounds),
                "ratio": [r.tokens_per_s / d.tokens_per_s for r, d in zip(rounds, targets["direct"], strict=True)],
                "first_byte_ms": statistics.median(first for r in rounds for first in r.first_byte_s) * 1e3,
                "first_byte_added_ms": [
                    (statistics.median(r.first_byte_s) - statistics.median(d.first_byte_s)) * 1e3
                    for r, d in zip(rounds, targets["direct"], strict=True)
                ],
                "cpu_us_per_token": _median([r.cpu_us_per_token for r in rounds]),
            }
            for name, rounds in targets.items()
        }
        for streams, targets in found.items()
    }


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def to_markdown(document: dict[str, Any]) -> str:
    lines = [
        "# The gateway beside vLLM asked directly",
        "",
        f"`python -m benchmarks.gateway`, {document['date']}, {document['machine']}; {document['rounds']} rounds of "
        f"each, answers of {TOKENS} tokens from the demo's student on one vLLM. Median over rounds [smallest, largest] "
        "of the ratio to the direct answers of the same round. CPU is the gateway process' own.",
        "",
        "| streams | asked through | tokens/s | of direct | first byte, ms | added, ms | CPU µs/token |",
        "| ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for streams, targets in document["results"].items():
        for name, told in targets.items():
            ratio, added = told["ratio"], told["first_byte_added_ms"]
            spread = f"{statistics.median(ratio):.2f} [{min(ratio):.2f}, {max(ratio):.2f}]"
            cpu = "" if told["cpu_us_per_token"] is None else f"{told['cpu_us_per_token']:.0f}"
            cells = (streams, name, f"{told['tokens_per_s']:.0f}", spread, f"{told['first_byte_ms']:.1f}")
            lines.append(f"| {' | '.join(cells)} | {statistics.median(added):+.1f} | {cpu} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vllm-python", type=Path, required=True, help="interpreter that has vLLM")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "gateway")
    options = parser.parse_args()
    with TemporaryDirectory() as folder, everything(options.vllm_python.absolute(), Path(folder)) as targets:
        found = uvloop.run(measure(targets, options.rounds))
    document = {
        **here(),
        "python": platform.python_version(),
        "rounds": options.rounds,
        "results": summary(found),
    }
    publish(document, to_markdown(document), options.out)


if __name__ == "__main__":
    main()
