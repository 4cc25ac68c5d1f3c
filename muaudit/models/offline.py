"""Keeps the network closed to whatever opens a model: its files could name others that are somewhere else."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_REACHING = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg"})
_LOCAL = frozenset({getattr(socket, name) for name in ("AF_UNIX", "AF_NETLINK") if hasattr(socket, name)})

_closed = threading.local()
_hooked = threading.Lock()


class Unreachable(ConnectionError):
    """A model's files made a library reach for the network."""


@contextmanager
def offline() -> Iterator[None]:
    """Refuses connections of this thread while it is open; those of other threads, such as to an endpoint, go on.

    Raises:
        Unreachable: Inside, by whatever resolves a name or connects; sockets of this machine alone are left alone.
    """
    if _hooked.acquire(blocking=False):  # once a process, and never given back: audit hooks cannot be taken out
        sys.addaudithook(_refuse)
    _closed.depth = getattr(_closed, "depth", 0) + 1
    try:
        yield
    finally:
        _closed.depth -= 1


def _refuse(event: str, arguments: tuple[object, ...]) -> None:
    if event not in _REACHING or not getattr(_closed, "depth", 0):
        return
    if isinstance(arguments[0], socket.socket) and arguments[0].family in _LOCAL:
        return
    raise Unreachable("its files name something that is not in the folder, and models are opened without the network")
