"""Student servers: an inference process per trained student, started when somebody asks, stopped when nobody does.

    StudentServers.acquire ──▶ Lease (base URL, model name) ──▶ Forwarder.complete / Forwarder.stream

`engine` says what kinds of server there are, `process` keeps one of them, `pool` keeps several, `forward` carries
completions there and back, over `upstream`'s connections. The room imports no torch: only the processes that it
starts do.
"""

from s2d.serve.admission import Admission
from s2d.serve.forward import Forwarder
from s2d.serve.lease import Lease
from s2d.serve.pool import StudentServers
from s2d.serve.request import CHAT, TEXT, Asked, Endpoint, asked, checked
from s2d.serve.settings import ServeSettings
from s2d.serve.upstream import Limits

__all__ = [
    "CHAT",
    "TEXT",
    "Admission",
    "Asked",
    "Endpoint",
    "Forwarder",
    "Lease",
    "Limits",
    "ServeSettings",
    "StudentServers",
    "asked",
    "checked",
]
