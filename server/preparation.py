"""Where requests are prepared: away from the event loop, in lanes that are bounded.

    body ──► lane, by size ──► prepare(body, context) ──► what answers the request

Preparing is everything between the bytes of a body and the engine: parse, check, render, encode,
grammar texts. It is plain synchronous code and never runs on the event loop, which the probes and
all streams share. A lane has a few threads and takes only so many requests and bytes; what comes on
top gets a 429, so work that nobody can wait for does not pile up.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rtpjax.errors import QueueFullError, RequestTimeoutError

if TYPE_CHECKING:
    from server.context import ModelContext

ResultT = TypeVar("ResultT")

MIB = 1024 * 1024
SMALL_BYTES = 64 * 1024  # larger bodies must not hold up smaller ones


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


class Lane:
    """A few threads, and the requests that wait for them."""

    def __init__(self, name: str, size: LaneSize):
        self._size = size
        self._lock = threading.Lock()
        self._num_requests = 0
        self._num_bytes = 0
        self._threads = ThreadPoolExecutor(size.num_threads, thread_name_prefix=f"prepare-{name}")

    async def run(self, work: Callable[[], ResultT], num_bytes: int, timeout_s: float) -> ResultT:
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
        begun = threading.Event()
        kept: list[Callable[[], ResultT]] = [work]

        def begin() -> ResultT:
            begun.set()
            return kept.pop()()

        # The context has what log lines say of the request.
        future: Future[ResultT] = self._threads.submit(contextvars.copy_context().run, begin)
        future.add_done_callback(lambda _: self._leave(num_bytes))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout_s)
        except TimeoutError:
            raise _too_late(timeout_s, has_begun=begun.is_set()) from None
        finally:
            kept.clear()  # the executor keeps what was cancelled until its turn comes

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


class Preparation:
    """The lanes of one server."""

    def __init__(self, context: ModelContext):
        cores = _num_cores()
        self._context = context
        self._timeout_s = context.config.prepare_timeout_s
        self._small = Lane("small", LaneSize(min(4, cores), 4096, 128 * MIB))
        self._large = Lane("large", LaneSize(max(1, min(4, cores // 2)), 512, 256 * MIB))

    async def run(self, prepare: Callable[[bytes, ModelContext], ResultT], body: bytes) -> ResultT:
        """What `prepare` makes of a body.

        Raises:
            RequestError: `prepare` refuses the body.
            QueueFullError: Too much is being prepared.
            RequestTimeoutError: It takes too long.
        """
        lane = self._small if len(body) <= SMALL_BYTES else self._large
        return await lane.run(lambda: prepare(body, self._context), len(body), self._timeout_s)

    def close(self) -> None:
        """Ends the threads."""
        self._small.close()
        self._large.close()


def _too_late(timeout_s: float, *, has_begun: bool) -> QueueFullError | RequestTimeoutError:
    if has_begun:
        reason = f"preparing this request took longer than {timeout_s:g} s; send a smaller one"
        return RequestTimeoutError(reason, code="preparation_timeout")
    return QueueFullError(f"the server is busy: no turn for {timeout_s:g} s; try again later")


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
