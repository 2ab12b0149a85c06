"""What the two generating APIs have in common in how an answer is written as JSON."""

from __future__ import annotations

import json
import secrets
import time
from typing import Any, Protocol

from server.output import Choice, Delta, Usage

NULL = b"null"


class AnswerFormat(Protocol):
    """Writes one answer, as events of a stream or whole."""

    @property
    def id(self) -> str:
        """As the caller gets it; "" if the API has none."""
        ...

    def first(self, index: int) -> bytes | None:
        """The event before the first delta of a choice, if the API has one."""
        ...

    def delta(self, delta: Delta) -> bytes: ...
    def usage(self, usage: Usage) -> bytes:
        """The last event of a stream, when usage was asked for."""
        ...

    def whole(self, choices: list[Choice], usage: Usage) -> dict[str, Any] | bytes:
        """The answer in one piece: an object, or its JSON where most of it was made before."""
        ...


class Envelope:
    """The keys around the choices, which stay the same for all chunks and are encoded once."""

    def __init__(
        self,
        prefix: str,
        kind: str,
        model: str,
        *,
        with_usage: bool,
        fingerprint: str = "",
        usage_so_far: Usage | None = None,
    ):
        """An envelope.

        Args:
            prefix: Of the answer's id.
            kind: The `object` of a chunk.
            model: Its name.
            with_usage: The usage comes in a last chunk of its own.
            fingerprint: Of what runs; "" leaves it out.
            usage_so_far: It comes in all others, too, as it is then.
        """
        self._usage_so_far = usage_so_far
        self.fields: dict[str, Any] = {
            "id": f"{prefix}-{secrets.token_hex(16)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }
        if fingerprint:
            self.fields["system_fingerprint"] = fingerprint
        self._head = dumps(self.fields)[:-1] + b',"choices":'
        # OpenAI: usage is null on all chunks but the last when it was asked for, else it is absent.
        self._tail = b',"usage":null}\n\n' if with_usage else b"}\n\n"

    def event(self, choice: bytes) -> bytes:
        """A chunk with one choice as a server-sent event."""
        tail = self._tail
        if self._usage_so_far is not None:
            tail = b',"usage":' + dumps(self._usage_so_far.as_json()) + b"}\n\n"
        return b"".join((b"data: ", self._head, b"[", choice, b"]", tail))

    def usage_event(self, usage: Usage) -> bytes:
        """The chunk without choices that carries the usage."""
        return b"data: " + self._head + b'[],"usage":' + dumps(usage.as_json()) + b"}\n\n"


# Made once: json.dumps makes one for each call that asks for no defaults.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def dumps(value: Any) -> bytes:
    """Compact UTF-8 JSON."""
    return _ENCODER.encode(value).encode()
