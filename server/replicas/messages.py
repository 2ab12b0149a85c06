"""What crosses from the front to a replica and back; Ray carries it between processes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it came.

    Attributes:
        method: "GET", "POST", ...
        path: With the query, as in the request line.
        headers: Those that are for the server, not for a connection.
        body: As it came.
        blocks: Names of its prompt's beginning (server.replicas.prefix).
    """

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    blocks: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Head:
    """What comes first of an answer; its body follows as bytes."""

    status: int
    headers: tuple[tuple[str, str], ...]

    @property
    def is_stream(self) -> bool:
        """Whether the body is a stream of events rather than one answer."""
        return any(
            n == "content-type" and v.startswith("text/event-stream") for n, v in self.headers
        )


# They belong to one connection; each side writes its own.
_HOP_BY_HOP = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "transfer-encoding")
)


def end_to_end(headers: list[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Headers that pass a proxy, names in lower case."""
    lower = ((name.lower(), value) for name, value in headers)
    return tuple((name, value) for name, value in lower if name not in _HOP_BY_HOP)
