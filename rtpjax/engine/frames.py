"""Pickled records on a stream, each with its length in front."""

from __future__ import annotations

import asyncio
import pickle
import struct
from collections.abc import Callable
from typing import Any

from rtpjax.engine.border import FromEngine

_LENGTH = struct.Struct(">Q")
_READ_BYTES = 1 << 18


def frame(record: Any) -> bytes:
    """A record as it is sent."""
    content = pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(content)) + content


def read_frame(stream: Any) -> Any:
    """The next record of a blocking stream.

    Raises:
        EOFError: There is none any more.
    """

    def exactly(size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = stream.read(min(size - len(data), _READ_BYTES))
            if not piece:
                raise EOFError
            data += piece
        return bytes(data)

    try:
        return pickle.loads(exactly(*_LENGTH.unpack(exactly(_LENGTH.size))))
    except ConnectionError:
        raise EOFError from None


class Frames(asyncio.Protocol):
    """Takes what the engine sends apart into records."""

    def __init__(self, receive: Callable[[FromEngine], object], on_lost: Callable[[], None]):
        self._receive = receive
        self._on_lost = on_lost
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        """Takes a piece."""
        buffer, start = self._buffer, 0
        buffer += data
        while len(buffer) - start >= _LENGTH.size:
            [length] = _LENGTH.unpack_from(buffer, start)
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            record = pickle.loads(memoryview(buffer)[start + _LENGTH.size : end])
            start = end
            self._receive(record)
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        """The process has ended, or closes the socket for another reason."""
        self._on_lost()
