"""The port that the API listens on."""

from __future__ import annotations

import errno
import ipaddress
import socket

from s2d.errors import Conflict, InvalidRequest


class PortBusy(Conflict):
    """Another program listens on the port."""

    code = "port_busy"


def claim_port(host: str, port: int) -> int:
    """`port` when it is free on `host`, or a free one for 0. Another program can still take it before the API does.

    Raises:
        PortBusy, InvalidRequest: taken, or not an address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As the server does it: connections of a service that just ended do not keep the port busy.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
            return int(probe.getsockname()[1])
    except OSError as err:
        raise _refusal(host, port, err) from err


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def local_url(host: str, port: int) -> str:
    """Where this machine reaches a server that is bound to `host`."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return f"http://{host}:{port}"
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return f"http://{address}:{port}" if address.version == 4 else f"http://[{address}]:{port}"


def _refusal(host: str, port: int, err: OSError) -> PortBusy | InvalidRequest:
    if err.errno == errno.EADDRINUSE:
        return PortBusy(
            f"Port {port} on {host} is in use by another program: stop that one, or choose another --port (0 takes a "
            "free one)."
        )
    return InvalidRequest(
        f"Cannot listen on {host}, port {port}: {err.strerror or err}. Choose another --host or --port."
    )
