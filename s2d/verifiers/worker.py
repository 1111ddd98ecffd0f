"""The process that grades for `GradingPool`: reads batches of pairs, answers each pair once it is graded.

Started as `python -m s2d.verifiers.worker FD SPEC`. Messages are JSON over the socket FD: first `"ready"` from
here, then batches `[[completion, answer], …]` in, and for each pair, in order, one `["ok", reward]` or
`["error", reason]` out.
"""

from __future__ import annotations

import ctypes
import json
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import Literal

from s2d.verifiers.base import Verifier, VerifierSpec, build

#: Address space of one worker. A tower of exponents must fail here and not fill the host's memory.
MEMORY_BYTES = 4 << 30

_PR_SET_PDEATHSIG = 1


def serve(connection: Connection, verifier: Verifier) -> None:
    """Grades until the pool closes its end."""
    connection.send_bytes(json.dumps("ready").encode())
    while True:
        try:
            batch = json.loads(connection.recv_bytes())
        except (EOFError, ConnectionError):
            return
        for completion, answer in batch:
            connection.send_bytes(json.dumps(_graded(verifier, completion, answer)).encode())


def _graded(
    verifier: Verifier, completion: str, answer: str
) -> tuple[Literal["ok"], float] | tuple[Literal["error"], str]:
    try:
        reward = float(verifier.grade(completion, answer))
    except Exception as error:  # whatever a verifier raises belongs to its pair, and the pool counts it
        return "error", f"{type(error).__name__}: {error}"[:500]
    if not 0.0 <= reward <= 1.0:
        return "error", f"the reward {reward} is not in [0, 1]"
    return "ok", reward


def belong_to_parent() -> None:
    """Lets the pool alone decide when this process ends, and the kernel when the pool's process is gone."""
    # A job's SIGTERM goes to the whole process group; the trainer still needs rewards to finish its step.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        # End of file reaches only a worker that reads; one stuck in C code dies by this.
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    belong_to_parent()
    serve(Connection(int(sys.argv[1])), build(VerifierSpec.model_validate_json(sys.argv[2])))
