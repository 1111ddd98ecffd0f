"""Stages that begin with their libraries loaded, for tests of what stages do rather than of how they begin and end.

Importing torch, transformers and trl takes four fifths of a short stage. Here a server imports them once and forks a
process for each stage; what a runner starts in its place is a small client, which passes on SIGTERM, the output and
the exit status, and whose own end, whatever it was, ends the stage. Tests that kill, launch or look for stages start
real ones.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path

#: Of a stage's arguments and environment.
LONGEST_ASK = 1 << 20


def command(devices: int) -> list[str]:
    """In place of `s2d.runner.child.stage_command`. The server is made at the first call and ends with us."""
    assert devices == 1, "a launcher starts processes of its own"
    # Without site packages the client starts in a moment.
    return [sys.executable, "-I", "-S", __file__, _server()]


@functools.cache
def _server() -> str:
    folder = tempfile.mkdtemp(prefix="s2d-warm-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = str(Path(folder) / "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", address], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert server.stdout is not None
    if not server.stdout.readline():
        raise RuntimeError(f"the server of warm stages ended with status {server.wait()}")
    return address


def serve(address: str) -> None:
    """Fork a process for each client, until the pipe at stdin is closed."""
    import torch

    from s2d.stages import evaluate, grpo, opd, select, teacher_rollouts, warmup  # noqa: F401

    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    # Nobody waits for the stages here: each tells its client how it ended.
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
            arguments = _become(client)
            torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
            _stage(client, arguments)
        client.close()


def _become(client: socket.socket) -> list[str]:
    """Take over the client's output, folder and environment; returns its arguments."""
    text, outputs, _, _ = socket.recv_fds(client, LONGEST_ASK, 2)
    ask = json.loads(text)
    os.environ.clear()
    os.environ.update(ask["environment"])
    os.chdir(ask["folder"])
    for stream, descriptor in enumerate(outputs, start=1):
        os.dup2(descriptor, stream)
        os.close(descriptor)
    threading.Thread(target=_heed, args=(client,), daemon=True).start()
    arguments: list[str] = ask["arguments"]
    return arguments


def _heed(client: socket.socket) -> None:
    while client.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)


def _stage(client: socket.socket, arguments: list[str]) -> None:
    from s2d.stages.__main__ import program

    status = 1
    try:
        status = program(arguments)
    except Exception:
        # As the interpreter would, whose end is not waited for.
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        client.send(bytes([status]))
        # Not by way of what the server would do at its end.
        os._exit(status)


def ask(address: str, arguments: list[str]) -> int:
    """Have a stage run; returns its exit status, or dies of SIGKILL as it did."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    server.connect(address)
    signal.signal(signal.SIGTERM, lambda *_: server.send(b"t"))
    wanted = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    socket.send_fds(server, [json.dumps(wanted).encode()], [1, 2])
    if not (status := server.recv(1)):
        os.kill(os.getpid(), signal.SIGKILL)
    return status[0]


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1], sys.argv[2:]))
