"""TCP ports of this machine: which are free, and whether somebody answers."""

import socket
from contextlib import suppress

from maas_ray.errors import ClusterError

_PORTS = 100
_ANSWER_SECONDS = 3


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on at this moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [int(opened.getsockname()[1]) for opened in sockets]
    finally:
        for opened in sockets:
            opened.close()


def first_free_port(port: int) -> int:
    """The first free port from `port` on.

    Raises:
        ClusterError: all of the next hundred are taken.
    """
    for candidate in range(port, port + _PORTS):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", candidate))
            return candidate
    raise ClusterError(f"all ports from {port} to {port + _PORTS - 1} are taken; choose another.", code="no_free_port")


def answers(address: str) -> bool:
    """True if something listens at `host:port`."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS):
            return True
    except OSError:
        return False
