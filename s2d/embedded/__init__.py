"""The service on one machine: a private Redis server, the API and the worker, started, watched and stopped together.

`EmbeddedService` is what `s2d up` and `s2d demo` hold open. The parts are child processes, so this room imports neither
`api` nor `worker`; each runs in a process group of its own under a guard that ends the group when this process is gone.
"""

from s2d.embedded.service import EmbeddedService, PartFailed

__all__ = ["EmbeddedService", "PartFailed"]
