"""The engine's process, from its start to its end. process.py says what crosses."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from rtpjax.engine.border import FromEngine, LoadFailed, portable
from rtpjax.engine.frames import frame, read_frame
from rtpjax.engine.loop import EngineLoop
from rtpjax.errors import RtpjaxError

if TYPE_CHECKING:
    from rtpjax.engine.engine import LLMEngine

logger = logging.getLogger(__name__)

_GOODBYE_S = 20.0  # for a step, and for the other hosts of a mesh


@dataclass(frozen=True, slots=True)
class Opened:
    """A model that is found and described, its weights still to be loaded.

    Attributes:
        description: Plain data: what the server has to know before the engine is there.
        load: Makes the engine; see EngineLoop.
    """

    description: Any
    load: Callable[[EngineLoop], LLMEngine]


class _ServerSide:
    """The engine's end of the sockets."""

    def __init__(self, descriptor: int):
        self._socket = socket.socket(fileno=descriptor)
        self._stream = self._socket.makefile("rb", buffering=0)
        self._sending = threading.Lock()

    def send(self, record: Any) -> None:
        """Sends a record; any thread may. Waits while the server takes nothing."""
        content = frame(record)
        with self._sending:
            self._socket.sendall(content)

    def read(self) -> Any:
        """Raises: EOFError: The server has ended, or asks this process to."""
        return read_frame(self._stream)

    def records(self) -> Iterator[Any]:
        """What the server sends, until it ends."""
        while True:
            try:
                yield self.read()
            except EOFError:
                return


def main(descriptor: int) -> None:
    """The engine's process, from its start to its end."""
    # Ctrl-C and what ends a whole group of processes are for the server, which drains first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server = _ServerSide(descriptor)
    loops: list[EngineLoop] = []
    try:
        module, function, arguments = server.read()
    except EOFError:
        return
    threading.Thread(
        target=_obey, args=(server, loops), name="server's requests", daemon=True
    ).start()
    try:
        opened: Opened = getattr(import_module(module), function)(*arguments)
        server.send(opened.description)
        loops.append(EngineLoop(opened.load, lambda record: server.send(_portable(record))))
    except BaseException as error:  # noqa: BLE001 (told to the server)
        _log_unforeseen(error)
        server.send(LoadFailed(portable(error)))
        return
    loops[0].run()


def _obey(server: _ServerSide, loops: list[EngineLoop]) -> None:
    """Takes in what the server sends; ends the process when the server does."""
    level = None
    for level_now, records in server.records():
        if level_now != level:
            level = level_now
            logging.getLogger().setLevel(level)
        loops[0].put(records)
    if loops and loops[0].is_serving:
        loops[0].stop()
        threading.Event().wait(_GOODBYE_S)
    # It is loading, or hangs on a device; nobody waits for it.
    os._exit(1)


def _portable(record: FromEngine) -> FromEngine:
    if isinstance(record, LoadFailed):
        _log_unforeseen(record.error)
        return LoadFailed(portable(record.error))
    return record


def _log_unforeseen(error: BaseException) -> None:
    if not isinstance(error, RtpjaxError):
        logger.error("The engine could not be started", exc_info=error)
