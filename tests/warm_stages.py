"""Stages that begin with their libraries loaded, for tests of what stages do rather than of how they begin and end.

Importing torch, transformers and trl takes four fifths of a short stage. Here a server imports them once and forks a
process for each stage; what a runner starts in its place is a small client, which passes on SIGTERM, the output and
the exit status, and whose own end, whatever it was, ends the stage. Tests that kill, launch or look for stages start
real ones.
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

#: Of a stage's arguments and environment.
LONGEST_ASK = 1 << 20


def running(program: Path) -> Callable[[int], list[str]]:
    """A Python file in place of `python -m s2d.stages`, for `s2d.runner.pipeline.Pipeline`."""
    return lambda devices: [*command(devices), str(program)]


def command(devices: int) -> list[str]:
    """In place of `s2d.runner.child.stage_command`. The server is made at the first call and ends with us."""
    assert devices == 1, "a launcher starts processes of its own"
    address, _ = _server()
    # Without site packages the client starts in a moment.
    return [sys.executable, "-I", "-S", __file__, address]


@functools.cache
def _server() -> tuple[str, subprocess.Popen[bytes]]:
    """Its address, and its process, which ends when nobody holds the pipe to it any more."""
    from s2d.runner import child

    folder = tempfile.mkdtemp(prefix="s2d-warm-")
    address = str(Path(folder) / "socket")
    # Some of the libraries read their environment when they are imported.
    environment = child.environment(1, None, 30)
    program, pipe = [sys.executable, __file__, "--serve", address], subprocess.PIPE
    server = subprocess.Popen(program, stdin=pipe, stdout=pipe, env=environment)
    assert server.stdout is not None
    if not server.stdout.readline():
        raise RuntimeError(f"the server of warm stages ended with status {server.wait()}")
    return address, server


def serve(address: str) -> None:
    """Fork a process for each client, until the pipe at stdin is closed."""
    from s2d.stages import evaluate, grpo, opd, select, teacher_rollouts, warmup  # noqa: F401

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    # Nobody waits for the keepers.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    print("ready", flush=True)
    events = selectors.DefaultSelector()
    events.register(sys.stdin, selectors.EVENT_READ)
    events.register(listener, selectors.EVENT_READ)
    while all(key.fileobj is listener for key, _ in events.select()):
        client, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _keep(client)
        client.close()
    shutil.rmtree(Path(address).parent)


def _keep(client: socket.socket) -> NoReturn:
    """Start the stage that the client asks for and tell the client how it ended."""
    text, outputs, _, _ = socket.recv_fds(client, LONGEST_ASK, 2)
    ask = json.loads(text)
    stage = os.fork()
    if stage == 0:
        client.close()
        # As a runner would start it: when the stage's supervisor is gone it ends its whole group.
        os.setsid()
        os.environ.clear()
        os.environ.update(ask["environment"])
        os.chdir(ask["folder"])
        for stream, descriptor in enumerate(outputs, start=1):
            os.dup2(descriptor, stream)
            os.close(descriptor)
        _stage(ask["arguments"])
    threading.Thread(target=_heed, args=(client, stage), daemon=True).start()
    _, status = os.waitpid(stage, 0)
    with suppress(BrokenPipeError):
        client.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _heed(client: socket.socket, stage: int) -> None:
    while client.recv(1):
        os.kill(stage, signal.SIGTERM)
    # As a runner ends it: with all that it has started. It may not have come to its group yet.
    for end in (os.kill, os.killpg):
        with suppress(ProcessLookupError):
            end(stage, signal.SIGKILL)


def _stage(arguments: list[str]) -> NoReturn:
    import torch

    from s2d.stages.__main__ import program

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    status = 1
    try:
        if arguments[0].endswith(".py"):
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
            status = 0
        else:
            status = program(arguments)
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    # Not by way of what the server would do at its end.
    os._exit(status)


def ask(address: str, arguments: list[str]) -> int:
    """Have a stage run; returns its exit status, or dies of the signal that it died of."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    signal.signal(signal.SIGTERM, lambda *_: server.send(b"t"))
    wanted = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(server, [json.dumps(wanted).encode()], [1, 2])
    status = int(server.recv(8))
    if status < 0:
        if status != -signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    return status


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
