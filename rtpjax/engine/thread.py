"""An engine in a thread of the server's process: for tests, and for whoever has made it already."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from rtpjax.engine.border import FromEngine, ToEngine
from rtpjax.engine.loop import EngineLoop
from rtpjax.errors import EngineError

if TYPE_CHECKING:
    from rtpjax.engine.engine import LLMEngine

logger = logging.getLogger(__name__)

_MAX_CALLS = 3  # of the event loop that fail, one after the other


class ThreadLink:
    """See rtpjax.engine.link.Link.

    Args:
        load: Makes the engine; see EngineLoop.
    """

    def __init__(self, load: Callable[[EngineLoop], LLMEngine]):
        self._load = load
        self._outbox: deque[FromEngine] = deque()
        self._thread: threading.Thread | None = None
        self.failure: str | None = None

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    async def open(self, receive: Callable[[FromEngine], object]) -> None:
        self._event_loop = asyncio.get_running_loop()
        self._receive = receive
        self.engine_loop = EngineLoop(self._load, self._tell)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def send(self, records: Iterable[ToEngine]) -> None:
        self.engine_loop.put(records)

    async def close(self, timeout_s: float | None) -> None:
        if self._thread is not None:
            self.engine_loop.stop()
            # After a failure it may hang on a device; it is a daemon.
            await asyncio.to_thread(self._thread.join, timeout_s)
            self._deliver()

    def _run(self) -> None:
        try:
            self.engine_loop.run()
        except BaseException:
            self.failure = "The engine's thread has failed. Restart the server; its log says why."
            logger.exception("The engine's thread failed")

    def _tell(self, record: FromEngine) -> None:
        """Has the event loop take a record.

        What a call was for is done by the next one, so one that fails is just made again.
        """
        self._outbox.append(record)
        for _ in range(_MAX_CALLS):
            try:
                self._event_loop.call_soon_threadsafe(self._deliver)
            except Exception:
                if self._event_loop.is_closed():
                    break
                logger.exception("The event loop did not take a call")
            else:
                return
        self.failure = "The engine's thread has failed: the event loop takes no calls any more."
        raise EngineError(self.failure)

    def _deliver(self) -> None:
        while self._outbox:
            self._receive(self._outbox.popleft())
