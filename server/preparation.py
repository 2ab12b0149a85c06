"""Where requests are prepared: away from the event loop, in lanes that are bounded.

    body ──► lane ──► prepare(body, context) ──► what answers the request
             small    threads of this process
             large    worker processes
             slow     worker processes, for the largest bodies and for templates of callers

Preparing is everything between the bytes of a body and the engine: parse, check, render, encode,
grammar texts. It is plain synchronous code and never runs on the event loop, which the probes and
all streams share. A lane takes only so many requests and bytes; what comes on top gets a 429, so
work that nobody can wait for does not pile up. What takes long is in a lane of its own, and holds
up nothing else.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from server.forks import forks
from server.inflate import inflated
from server.lanes import LARGE, SLOW, SMALL, Lane, LaneSize, NeedsLane, Turn
from server.worker import Worker

if TYPE_CHECKING:
    from server.context import ModelContext

ResultT = TypeVar("ResultT")
Prepare = Callable[[bytes, "ModelContext"], ResultT]

MIB = 1024 * 1024
# Python's lock can be kept for milliseconds by a body of this size, for seconds by one of 16 MB.
SMALL_BYTES = 64 * 1024
LARGE_BYTES = MIB


class Preparation:
    """The lanes of one server."""

    def __init__(self, context: ModelContext, observe: Callable[[str, float], None]):
        """Args:
        context: For what is prepared.
        observe: Takes the lane and the seconds of each request.
        """
        cores = _num_cores()
        self._context = context
        self._observe = observe
        self._timeout_s = context.config.prepare_timeout_s
        self._lanes = {
            SMALL: Lane(SMALL, LaneSize(min(4, cores), 4096, 128 * MIB)),
            LARGE: Lane(LARGE, LaneSize(max(1, min(8, cores // 2)), 512, 256 * MIB)),
            SLOW: Lane(SLOW, LaneSize(max(1, min(4, cores // 4)), 32, 256 * MIB)),
        }
        self._workers: list[Worker] = []
        self._of_thread = threading.local()

    async def run(self, prepare: Prepare[ResultT], body: bytes) -> ResultT:
        """What `prepare` makes of a body.

        Raises:
            RequestError: `prepare` refuses the body.
            QueueFullError: Too much is being prepared.
            RequestTimeoutError: It takes too long.
        """
        lane = SMALL if len(body) <= SMALL_BYTES else LARGE if len(body) <= LARGE_BYTES else SLOW
        try:
            return await self._run(lane, prepare, body)
        except NeedsLane as other:
            return await self._run(other.lane, prepare, body)

    async def inflate(self, body: bytes) -> bytes:
        """What a compressed body holds, which may be as much as any body.

        Raises:
            RequestError, PayloadTooLarge: As `inflated`.
            QueueFullError, RequestTimeoutError: As `run`.
        """
        most = self._context.config.max_body_bytes

        def work(_: Turn[bytes]) -> bytes:
            return inflated(body, most)

        return await self._lanes[SMALL].run(work, len(body), self._timeout_s)

    async def _run(self, lane: str, prepare: Prepare[ResultT], body: bytes) -> ResultT:
        def here(_: Turn[ResultT]) -> ResultT:
            return prepare(body, self._context)

        def apart(turn: Turn[ResultT]) -> ResultT:
            return self._worker().call(prepare, body, lane, turn)

        work = here if lane == SMALL else apart
        start_s = time.monotonic()
        try:
            return await self._lanes[lane].run(work, len(body), self._timeout_s)
        finally:
            self._observe(lane, time.monotonic() - start_s)

    def _worker(self) -> Worker:
        """That of this thread."""
        if not hasattr(self._of_thread, "worker"):
            self._of_thread.worker = Worker(self._context)
            self._workers.append(self._of_thread.worker)
        return self._of_thread.worker

    def begin(self) -> None:
        """Starts what workers are forked from: the first large body need not wait for it."""
        forks()

    def close(self) -> None:
        """Ends threads and processes."""
        for lane in self._lanes.values():
            lane.close()
        for worker in self._workers:
            worker.close()


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
