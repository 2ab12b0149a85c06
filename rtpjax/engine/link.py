"""How a server reaches its engine: in a thread (thread.py) or in another process (process.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from rtpjax.engine.border import FromEngine, ToEngine


class Link(Protocol):
    """The way to an engine. All of it belongs to the event loop that opens it."""

    @property
    def is_alive(self) -> bool:
        """Whether there is somebody at the other end."""
        ...

    @property
    def failure(self) -> str | None:
        """Why there is nobody, if that is known."""
        ...

    async def open(self, receive: Callable[[FromEngine], object]) -> None:
        """Has the engine loaded; `receive` is called in the event loop with all that it sends.

        Where the other end is lost without a word, `receive` gets an Ended all the same.
        """
        ...

    def send(self, records: Iterable[ToEngine]) -> None:
        """Sends records to an open link."""
        ...

    async def close(self, timeout_s: float | None) -> None:
        """Ends the engine after its step, and waits for it."""
        ...
