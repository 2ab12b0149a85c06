"""Lanes: a few threads each, bounded in what may wait for them. `server.preparation` has three."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from rtpjax.errors import QueueFullError, RequestTimeoutError

ResultT = TypeVar("ResultT")

SMALL, LARGE, SLOW = "small", "large", "slow"


class NeedsLane(Exception):  # noqa: N818 (a turn, not an error: the request goes on elsewhere)
    """This work does not belong in the lane that it is in."""

    def __init__(self, lane: str):
        super().__init__(lane)
        self.lane = lane


@dataclass(frozen=True, slots=True)
class LaneSize:
    """How much a lane takes.

    Attributes:
        num_threads: Requests that are prepared at once.
        max_requests: Requests in the lane, the waiting ones included.
        max_bytes: Bytes of their bodies together.
    """

    num_threads: int
    max_requests: int
    max_bytes: int


class Turn(Generic[ResultT]):
    """A request's place in a lane.

    Attributes:
        deadline: On the monotonic clock, when its time is over.
        has_begun: It is being worked on.
        is_wanted: Somebody waits for it.
    """

    def __init__(self, work: Callable[[Turn[ResultT]], ResultT], timeout_s: float):
        self.deadline = time.monotonic() + timeout_s
        self.has_begun = False
        self.is_wanted = True
        self._work: Callable[[Turn[ResultT]], ResultT] | None = work

    def take(self) -> ResultT:
        """Does the work."""
        self.has_begun = True
        work, self._work = self._work, None
        if work is None:
            raise TimeoutError("given up in the moment in which it began")
        return work(self)

    def give_up(self) -> None:
        """Nobody waits any more; lets go of the body, which an executor would keep."""
        self.is_wanted = False
        self._work = None


class Lane:
    """A few threads, and the requests that wait for them."""

    def __init__(self, name: str, size: LaneSize):
        self._size = size
        self._lock = threading.Lock()
        self._num_requests = 0
        self._num_bytes = 0
        self._threads = ThreadPoolExecutor(size.num_threads, thread_name_prefix=f"prepare-{name}")

    async def run(
        self, work: Callable[[Turn[ResultT]], ResultT], num_bytes: int, timeout_s: float
    ) -> ResultT:
        """What the work returns. Cancelling the caller takes work that has not begun off the queue.

        Args:
            work: To be done in a thread.
            num_bytes: What it counts for until it has ended.
            timeout_s: Most time for waiting and working together.

        Raises:
            QueueFullError: The lane is full, or the work did not begin in time.
            RequestTimeoutError: It began, and did not end in time.
        """
        self._enter(num_bytes)
        turn = Turn(work, timeout_s)
        del work  # only the turn holds the body
        # The context has what log lines say of the request.
        future: Future[ResultT] = self._threads.submit(contextvars.copy_context().run, turn.take)
        future.add_done_callback(lambda _: self._leave(num_bytes))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
        except TimeoutError:
            raise _too_late(timeout_s, has_begun=turn.has_begun) from None
        finally:
            turn.give_up()

    def _enter(self, num_bytes: int) -> None:
        with self._lock:
            is_full = self._num_requests >= self._size.max_requests
            if is_full or self._num_bytes + num_bytes > max(self._size.max_bytes, num_bytes):
                message = f"{self._num_requests} requests are being prepared; try again later"
                raise QueueFullError(f"the server is busy: {message}")
            self._num_requests += 1
            self._num_bytes += num_bytes

    def _leave(self, num_bytes: int) -> None:
        with self._lock:
            self._num_requests -= 1
            self._num_bytes -= num_bytes

    def close(self) -> None:
        """Ends the threads, each after what it is at."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _too_late(timeout_s: float, *, has_begun: bool) -> QueueFullError | RequestTimeoutError:
    """The error for a request whose time is over."""
    if has_begun:
        reason = f"preparing this request took longer than {timeout_s:g} s; send a smaller one"
        return RequestTimeoutError(reason, code="preparation_timeout")
    return QueueFullError(f"the server is busy: no turn for {timeout_s:g} s; try again later")
