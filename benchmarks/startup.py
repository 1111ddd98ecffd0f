"""How long the API takes to be up, beside a FastAPI service that does nothing.

`python -m benchmarks.startup`. A first start makes the state folder, the database with all migrations, and the first
key; a second one finds them. Rounds are interleaved, so that what slows the machine slows all of them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx

from benchmarks.output import here, publish
from s2d.embedded.ports import claim_port

RESULTS = Path(__file__).parent / "results"
#: A service that does nothing answers any path, with 404.
BARE = ("fastapi:FastAPI", "/")
S2D = ("api.app:create_app", "/healthz")


def seconds_until_up(factory: str, path: str, state_dir: Path) -> float:
    """From the start of a process to its first answer."""
    port = claim_port("127.0.0.1", 0)
    command = [sys.executable, "-m", "uvicorn", "--factory", factory, "--port", str(port)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5, trust_env=False) as client:
        began = time.monotonic()
        server = subprocess.Popen(command, env=os.environ | {"S2D_STATE_DIR": str(state_dir)}, **quiet)  # type: ignore[call-overload]
        try:
            while not _answers(client, path):
                assert server.poll() is None, f"{factory} has ended"
                assert time.monotonic() - began < 120, f"{factory} does not answer"
                time.sleep(0.01)
            return time.monotonic() - began
        finally:
            server.terminate()
            server.wait(30)


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code < 500
    except httpx.TransportError:
        return False


def measure(rounds: int, folder: Path) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"bare": [], "first": [], "second": []}
    # The very first ones may have to compile.
    for number in range(-1, rounds):
        state = folder / str(number)
        took = {
            "bare": seconds_until_up(*BARE, state),
            "first": seconds_until_up(*S2D, state),
            "second": seconds_until_up(*S2D, state),
        }
        if number >= 0:
            for name, one in took.items():
                seconds[name].append(one)
    ratios = {
        name: statistics.median(one / bare for one, bare in zip(seconds[name], seconds["bare"], strict=True))
        for name in ("first", "second")
    }
    return {"rounds": rounds, "seconds": seconds, "ratios": ratios}


def to_markdown(found: dict[str, Any]) -> str:
    def row(what: str, name: str) -> str:
        ratio = f"{found['ratios'][name]:.2f}" if name in found["ratios"] else "1"
        return f"| {what} | {statistics.median(found['seconds'][name]):.2f} s | {ratio} |\n"

    return (
        "# How long the API takes to be up\n\n"
        f"`python -m benchmarks.startup`, {found['date']}, {found['machine']}: from its start to the first "
        f"answer, medians of {found['rounds']} interleaved rounds; the ratio is that of each round's own.\n\n"
        "| | up after | beside a bare FastAPI |\n| --- | ---: | ---: |\n"
        + row("a FastAPI service that does nothing, under uvicorn", "bare")
        + row("s2d, first start: state folder, migrations, first key", "first")
        + row("s2d, every other start", "second")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "startup")
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(options.rounds, Path(folder))
    found |= here()
    publish(found, to_markdown(found), options.out)


if __name__ == "__main__":
    main()
