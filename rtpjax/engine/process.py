"""The engine in a process of its own.

    server's process                        engine's process
    EngineProcess ── what to call ────────► open the model
                  ◄── its description ─────
                  ── requests, aborts ────► reader thread ──► EngineLoop (main thread)
                  ◄── a Report a step ─────────────────────────┘

The two share a pair of sockets, and what crosses is pickled, with its length in front. When one
process ends, however it ends, the system closes its socket and the other one hears of it at once;
there are no ports, files or shared memory that could be left behind. The processes start together,
and the server's needs no jax.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rtpjax.engine.border import Ended, FromEngine, LoadFailed, ToEngine
from rtpjax.engine.frames import Frames, frame, read_frame
from rtpjax.errors import EngineError

logger = logging.getLogger(__name__)

_BEGIN = "import sys; from rtpjax.engine.process_main import main; main(int(sys.argv[1]))"
_BUFFER_BYTES = 4 << 20  # what a step sends does not wait for the server's event loop
_GOODBYE_S = 20.0  # for a step, and for the other hosts of a mesh
_STATUS_S = 2.0  # between the end of a process's socket and its exit status


class EngineProcess:
    """The server's side: starts the process at once. A rtpjax.engine.link.Link.

    Args:
        module, function: What the process calls for an Opened. By name: what is `__main__` here
            has another name there.
        arguments: Picklable.
    """

    def __init__(self, module: str, function: str, *arguments: Any):
        self.failure: str | None = None
        self._is_closing = False
        self._transport: asyncio.WriteTransport | None = None
        self._socket, theirs = socket.socketpair()
        with theirs:
            for each in (self._socket, theirs):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
            )
        self._socket.sendall(frame((module, function, arguments)))

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs, as far as is known."""
        return self.failure is None and not self._is_closing

    def describe(self) -> Any:
        """Waits for the description of the model. Call it once, before `open`.

        Raises:
            Exception: What went wrong while the model was opened.
        """
        try:
            with self._socket.makefile("rb", buffering=0) as stream:
                found = read_frame(stream)
            if isinstance(found, LoadFailed):
                raise found.error
        except EOFError:
            reason = self._how_it_ended()
            self.kill()
            raise EngineError(reason) from None
        except BaseException:
            self.kill()
            raise
        return found

    async def open(self, receive: Callable[[FromEngine], object]) -> None:
        """See Link."""
        loop = asyncio.get_running_loop()
        self._lost = asyncio.Event()
        self._receive = receive
        self._socket.setblocking(False)
        self._transport, _ = await loop.create_unix_connection(
            lambda: Frames(receive, self._on_lost), sock=self._socket
        )

    def send(self, records: Iterable[ToEngine]) -> None:
        """See Link. The engine's process logs what this one does."""
        assert self._transport is not None
        level = logging.getLogger().level
        self._transport.write(frame((level, list(records))))

    async def close(self, timeout_s: float | None) -> None:
        """See Link."""
        self._is_closing = True
        if self._transport is None:
            self._socket.close()
        elif not self._transport.is_closing():
            self._transport.write_eof()
        try:
            await asyncio.to_thread(self._process.wait, timeout_s or _GOODBYE_S)
        except subprocess.TimeoutExpired:
            self.kill()
        if self._transport is not None:
            self._transport.close()

    def kill(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _on_lost(self) -> None:
        if self._is_closing:
            self._receive(Ended(None))
            return
        self.failure = "The engine's process has ended."  # nobody may send to it any more
        self._ending = asyncio.ensure_future(self._tell_end())

    async def _tell_end(self) -> None:
        self.failure = await asyncio.to_thread(self._how_it_ended)
        logger.critical("%s", self.failure)
        self._receive(Ended(self.failure))

    def _how_it_ended(self) -> str:
        try:
            status = self._process.wait(_STATUS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            return "The engine's process has closed its socket and did not end. Restart the server."
        reason = f"exit status {status}"
        if status < 0:
            reason = f"it was killed by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            reason += "; the system does so where memory runs out"
        return (
            f"The engine's process has ended ({reason}). Restart the server; its log may say why."
        )
