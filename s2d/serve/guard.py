"""`python guard.py PARENT_PID COMMAND...`: runs the command and ends its whole process group when the parent is gone.

A death signal from the kernel would not do: it follows the *thread* that started the child, and servers are started
from short-lived request threads; it also spares grandchildren, which vLLM has. So a small process of its own watches.
It must be the leader of its process group. It does not guarantee anything against its own SIGKILL: whoever started it
ends the group then. Standard library only, as it runs before anything is importable.
"""

import os
import signal
import subprocess
import sys
import time

POLL_S = 0.2
GRACE_S = 5.0


def main(parent: int, command: list[str]) -> int:
    # A handler and not SIG_IGN, which the child would inherit. The group's SIGTERM reaches the child by itself.
    signal.signal(signal.SIGTERM, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    while child.poll() is None:
        if os.getppid() != parent:
            end_group(child)
        time.sleep(POLL_S)
    return child.returncode


def end_group(child: subprocess.Popen[bytes]) -> None:
    """Does not return: this process is in the group."""
    os.killpg(0, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
