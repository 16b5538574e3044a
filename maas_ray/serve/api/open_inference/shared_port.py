"""A port that several processes of one owner share, and that each can leave without breaking incoming connections.

With SO_REUSEPORT, the kernel distributes connections to all processes of a user that listen. A lock on a file, the
claim, therefore says who owns the port. gRPC does not expose its sockets, and can only stop listening and answering at
once, so this module finds the sockets among the descriptors of the process.
"""

import asyncio
import ctypes
import errno
import fcntl
import os
import re
import socket
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_TAKEN_SECONDS = 0.1  # more than enough to accept connections that the kernel has assigned
_SO_ATTACH_FILTER = 26  # on Linux; elsewhere setting it fails, and the few new connections are reset
# A packet filter (classic BPF) that drops TCP packets with SYN and without ACK, which open a connection.
_DROP_SYN = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


@dataclass(frozen=True)
class Address:
    """An address to listen on.

    Args:
        host: a name or address of this machine.
        port: above 0.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def claim(address: Address, owner: str) -> int:
    """A descriptor that reserves an address for one owner, as long as any of its processes has it open.

    Raises:
        OSError: another owner listens there.
    """
    name = re.sub(r"[^\w.]", "_", str(address))
    path = os.path.join(tempfile.gettempdir(), f"maas-{os.getuid()}-port-{name}")
    claim = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with suppress(BlockingIOError):  # another process has it
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _check_free(address)
            os.truncate(claim, 0)
            os.pwrite(claim, owner.encode(), 0)
        # Between the two locks another process may have written its owner, so the content decides.
        fcntl.flock(claim, fcntl.LOCK_SH)
        if os.pread(claim, 4096, 0).decode(errors="replace") != owner:
            raise OSError(errno.EADDRINUSE, "Another cluster of this user has that port")
    except BaseException:
        os.close(claim)
        raise
    return claim


def listening(address: Address) -> set[int]:
    """The descriptors of this process's sockets that listen on a port."""
    return {descriptor for descriptor, sock in _sockets(address.port) if _listens(sock)}


async def leave(listening: set[int]) -> None:
    """Stop listening with these sockets. Established connections stay.

    A connection that the kernel has assigned and the process has not accepted yet would be reset. Therefore new
    connections are turned away first: their clients retry a second later, and reach a process that listens then.
    """
    for change in (_turn_away, _end):
        for descriptor in listening:
            with suppress(OSError), _opened(descriptor) as sock:
                change(sock)
        await asyncio.sleep(_TAKEN_SECONDS)


def has_connections(address: Address) -> bool:
    """True if this process has a connection on a port."""
    return any(not _listens(sock) for _, sock in _sockets(address.port))


def _turn_away(sock: socket.socket) -> None:
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in _DROP_SYN))
    program = struct.pack("@HP", len(_DROP_SYN), ctypes.addressof(code))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


def _end(sock: socket.socket) -> None:
    sock.shutdown(socket.SHUT_RD)


def _sockets(port: int) -> Iterator[tuple[int, socket.socket]]:
    for descriptor in map(int, os.listdir("/dev/fd")):
        with suppress(OSError):  # other threads open and close descriptors meanwhile
            if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                with _opened(descriptor) as sock:
                    if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockname()[1] == port:
                        yield descriptor, sock


@contextmanager
def _opened(descriptor: int) -> Iterator[socket.socket]:
    """The socket of a descriptor, which stays open."""
    copy = os.dup(descriptor)
    try:
        sock = socket.socket(fileno=copy)
    except OSError:
        os.close(copy)
        raise
    with sock:
        yield sock


def _listens(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _check_free(address: Address) -> None:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # so that past connections do not count
        probe.bind((address.host, address.port))
