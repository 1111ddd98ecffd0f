"""A crowd that watches one job: 1,000 clients poll it every two seconds, 500 read its event stream, for a minute.

`python -m benchmarks.polling`. The API is a process of its own, as `s2d up` starts it; a writer adds an event twice a
second, as a training stage does. Errors are any answer but 200 and 304, any connection that breaks, and any event that
a stream misses.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
import uvloop

from benchmarks.gateway import running
from benchmarks.output import here, publish
from benchmarks.rig import stored_job
from s2d.embedded.part import Part
from s2d.embedded.ports import claim_port, local_url
from s2d.embedded.service import api_command
from s2d.events import NewEvent
from s2d.services.context import Context, first_key, open_context
from s2d.settings import Settings
from s2d.store import jobs
from s2d.store.jobs import Claim

POLLERS, STREAMS, PERIOD_S, EVENT_S = 1000, 500, 2.0, 0.5
RESULTS = Path(__file__).parent / "results"


@dataclass
class Seen:
    poll_s: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    events: list[int] = field(default_factory=list)


class Crowd:
    """All clients, in one process; each keeps its connection."""

    def __init__(self, port: int, key: str, job_id: str, seconds: float) -> None:
        self.seen = Seen()
        self._port, self._key, self._job = port, key, job_id
        self._until = time.perf_counter() + seconds

    async def run(self, pollers: int, streams: int) -> Seen:
        crowd = [self._guarded(self._poll()) for _ in range(pollers)]
        crowd += [self._guarded(self._stream()) for _ in range(streams)]
        await asyncio.gather(*crowd)
        return self.seen

    async def _guarded(self, client: Any) -> None:
        try:
            await client
        except Exception as error:  # counted, and told at the end
            self.seen.errors.append(f"{type(error).__name__}: {error}")

    async def _connect(self, path: str, *more: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        lines = (f"GET {path} HTTP/1.1", "host: 127.0.0.1", f"authorization: Bearer {self._key}", *more)
        return reader, writer, "\r\n".join(lines).encode()

    async def _poll(self) -> None:
        # They do not come all at once.
        await asyncio.sleep(random.random() * PERIOD_S)
        reader, writer, request = await self._connect(f"/v1/jobs/{self._job}")
        known = b""
        while time.perf_counter() < self._until:
            began = time.perf_counter()
            writer.write(request + known + b"\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.lower().split(b"\r\n")[1:] if line)
            await reader.readexactly(int(fields.get(b"content-length", b"0")))
            took, status = time.perf_counter() - began, int(head.split()[1])
            self.seen.poll_s.append(took)
            self.seen.statuses[status] = self.seen.statuses.get(status, 0) + 1
            if status not in (200, 304):
                self.seen.errors.append(f"a poll was answered {status}")
            known = b"\r\nif-none-match: " + fields[b"etag"]
            await asyncio.sleep(max(0.0, PERIOD_S - took))
        writer.close()

    async def _stream(self) -> None:
        await asyncio.sleep(random.random() * PERIOD_S)
        reader, writer, request = await self._connect(f"/v1/jobs/{self._job}/events", "accept: text/event-stream")
        writer.write(request + b"\r\n\r\n")
        last = 0
        while (left := self._until - time.perf_counter()) > 0:
            try:
                async with asyncio.timeout(left):
                    line = await reader.readline()
            except TimeoutError:
                break
            if not line:
                raise EOFError("a stream ended")
            if line.startswith(b"id: "):
                if int(line[4:]) != last + 1:
                    self.seen.errors.append(f"a stream went from event {last} to {int(line[4:])}")
                last = int(line[4:])
        self.seen.events.append(last)
        writer.close()


@contextmanager
def service(folder: Path) -> Iterator[tuple[Context, psutil.Process, Claim, str]]:
    """An API with one running job."""
    settings = Settings(state_dir=folder / "state", port=claim_port("127.0.0.1", 0))
    ctx = open_context(settings)
    key = first_key(ctx)
    with ctx.db.begin() as session:
        job = stored_job(session)
        claim = jobs.claim(session, job.id, "bench", 3600)
    assert claim is not None
    url = local_url(settings.host, settings.port)
    with running(Part(api_command(settings), folder), url, {}, "/healthz") as process:
        yield ctx, process, claim, key
    ctx.db.close()


async def write_events(ctx: Context, claim: Claim, seconds: float) -> int:
    """Steps as a stage tells them; how many."""
    until, written = time.perf_counter() + seconds, 0

    def write(step: int) -> None:
        metrics = {"loss": 1.0 / (step + 1), "reward_mean": 0.5, "kl": 0.01}
        with ctx.db.begin() as session:
            jobs.record(
                session, claim, {}, [NewEvent(type="metrics", stage="opd", step=step, data={"metrics": metrics})]
            )

    while time.perf_counter() < until:
        await asyncio.to_thread(write, written)
        written += 1
        await asyncio.sleep(EVENT_S)
    return written


async def measure(folder: Path, pollers: int, streams: int, seconds: float) -> dict[str, Any]:
    with service(folder) as (ctx, process, claim, key):
        crowd = Crowd(ctx.settings.port, key, claim.job_id, seconds)
        cpu = sum(process.cpu_times()[:2])
        writing = asyncio.create_task(write_events(ctx, claim, seconds - 5))
        seen = await crowd.run(pollers, streams)
        written = await writing
        spent = sum(process.cpu_times()[:2]) - cpu
    polls = sorted(seen.poll_s)
    return {
        "pollers": pollers, "streams": streams, "seconds": seconds, "polls": len(polls),
        "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
        "errors": len(seen.errors), "first_errors": seen.errors[:5],
        "poll_ms": {"p50": statistics.median(polls) * 1e3, "p95": polls[int(len(polls) * 0.95)] * 1e3,
                    "p99": polls[int(len(polls) * 0.99)] * 1e3, "max": polls[-1] * 1e3},
        "events_written": written + 2, "events_read_fewest": min(seen.events, default=0),
        "events_read_most": max(seen.events, default=0), "api_cpu_share_of_a_core": spent / seconds,
    }  # fmt: skip


def to_markdown(found: dict[str, Any]) -> str:
    polls = found["poll_ms"]
    return (
        "# A crowd that watches one job\n\n"
        f"`python -m benchmarks.polling`, {found['date']}, {found['machine']}: {found['pollers']:,} clients poll a job "
        f"every {PERIOD_S:g} s and {found['streams']} read its event stream for {found['seconds']:g} s; all of them, "
        "the API and the writer of the events share the machine.\n\n"
        "| | |\n| --- | ---: |\n"
        f"| errors | {found['errors']} |\n"
        f"| polls | {found['polls']:,} ({', '.join(f'{n:,} × {s}' for s, n in found['statuses'].items())}) |\n"
        f"| a poll, p50 / p95 / p99 / longest | {polls['p50']:.1f} / {polls['p95']:.1f} / {polls['p99']:.1f} / "
        f"{polls['max']:.0f} ms |\n"
        f"| events written, and read by every stream | {found['events_written']}, {found['events_read_fewest']} |\n"
        f"| the API's CPU | {found['api_cpu_share_of_a_core']:.2f} of a core |\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pollers", type=int, default=POLLERS)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--out", type=Path, default=RESULTS / "polling")
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Inherited by the API, which has as many connections.
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with TemporaryDirectory() as folder:
        found = uvloop.run(measure(Path(folder), options.pollers, options.streams, options.seconds))
    found |= here()
    publish(found, to_markdown(found), options.out)


if __name__ == "__main__":
    main()
