"""HTTP over a bare socket, for what clients' libraries do not do."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from tests.server.live_server import LiveServer


@contextmanager
def connected(server: LiveServer, *, receive_buffer: int | None = None) -> Iterator[socket.socket]:
    """A connection to the server; a small receive buffer makes a client that can be stalled."""
    with socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", server.port))
        yield sock


def head(method: str, path: str, **headers: str | int) -> bytes:
    """A request's head; `Content_Length=5` is its header Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def read_to_end(sock: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)
