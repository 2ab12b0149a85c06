"""Comparisons in processes, one for each implementation, and what becomes of those that end.

lane pallas   compile compile compile ...     each lane compiles its jobs in order, all lanes
lane xla      compile compile ...             side by side; one job of all runs at a time, so
lane mosaic   compile ...                     that times are not disturbed; Mosaic's at last
"""

from __future__ import annotations

import dataclasses
import math
import multiprocessing.connection
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Literal

from pallas_kernels.registry import Target
from rtpjax.check.compare import Job
from rtpjax.check.results import Result
from rtpjax.check.worker import READY, Worker

_START_LIMIT_S = 120.0
_MAX_FAULTS = 4
# An implementation that runs when all others have: nothing of it has been on a GPU, and a kernel
# that never ends keeps the GPU from the others until its time is over.
_LAST = "mosaic"


def run_jobs(
    jobs: Sequence[Job], target: Target, *, parallel: int, case_limit_s: float
) -> Generator[Result, None, None]:
    """Results of comparisons as they come; see kernels.check_kernels."""
    names = dict.fromkeys(job.implementation.name for job in jobs)
    lanes = [
        _Lane([job for job in jobs if job.implementation.name == name], target, parallel)
        for name in sorted(names, key=lambda name: name == _LAST)
    ]
    try:
        while any(lane.is_busy for lane in lanes):
            _give_work(lanes, parallel)
            yield from _news(lanes, case_limit_s)
    finally:
        for lane in lanes:
            lane.close()


def _give_work(lanes: Sequence[_Lane], parallel: int) -> None:
    """Begins what may begin, lanes in front first.

    Tracing holds Python's lock, so that the threads of one process keep few cores busy: lanes share
    the compilations evenly.
    """
    for lane in lanes:
        lane.start()
    while sum(lane.count("compiling") for lane in lanes) < parallel:
        able = [lane for lane in lanes if lane.may_compile]
        if not able:
            break
        min(able, key=lambda lane: lane.count("compiling")).compile_next()
    if any(lane.count("running") for lane in lanes):
        return
    others_are_busy = any(lane.is_busy for lane in lanes if lane.name != _LAST)
    for lane in lanes:
        if not (lane.name == _LAST and others_are_busy) and lane.run_next():
            return


def _news(lanes: Sequence[_Lane], case_limit_s: float) -> Iterator[Result]:
    """Waits for a message or the end of a limit; the results that come of it."""
    connections = {lane.worker.connection: lane for lane in lanes if lane.worker is not None}
    deadline = min(lane.deadline(case_limit_s) for lane in lanes)
    left_s = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
    for connection in multiprocessing.connection.wait(list(connections), left_s):
        yield from connections[connection].receive()  # type: ignore[index]
    for lane in lanes:
        yield from lane.end_late(case_limit_s)


@dataclasses.dataclass
class _Started:
    """What a lane's process does with a job, and since when (time.monotonic)."""

    phase: Literal["compiling", "compiled", "running"]
    since: float


class _Lane:
    """The jobs of one implementation, and the process that has them.

    A process that ends is started again for the jobs that are left, without the one that ended it.
    Where that may have been one of several, they are done again, one at a time. What is left after
    several that ended it is not run.
    """

    def __init__(self, jobs: Sequence[Job], target: Target, parallel: int):
        self.name = jobs[0].implementation.name
        self.worker: Worker | None = None
        self._jobs, self._target, self._parallel = jobs, target, parallel
        self._waiting = list(range(len(jobs)))
        self._alone: set[int] = set()  # those that nothing may be done beside
        self._started: dict[int, _Started] = {}
        self._is_ready, self._start_time, self._num_faults = False, 0.0, 0

    @property
    def is_busy(self) -> bool:
        """Whether a job has no result yet."""
        return bool(self._waiting or self._started)

    def count(self, phase: str) -> int:
        """Jobs in that phase."""
        return sum(started.phase == phase for started in self._started.values())

    def start(self) -> None:
        """Starts the process if there is none and something is to be done."""
        if self.worker is None and self.is_busy:
            self.worker = Worker(self._jobs, self._target, self._parallel)
            self._is_ready, self._start_time = False, time.monotonic()

    def close(self) -> str:
        """Ends the process; what it said at last."""
        worker, self.worker, self._is_ready = self.worker, None, False
        return worker.close() if worker is not None else ""

    @property
    def may_compile(self) -> bool:
        """Whether a compilation can begin."""
        if not self._is_ready or not self._waiting or self._alone & self._started.keys():
            return False
        return not (self._waiting[0] in self._alone and self._started)

    def compile_next(self) -> None:
        """Begins a compilation."""
        self._begin("compile", self._waiting.pop(0))

    def run_next(self) -> bool:
        """Runs the first job that is compiled, if there is one."""
        ready = [n for n, started in self._started.items() if started.phase == "compiled"]
        if ready:
            self._begin("run", min(ready))
        return bool(ready)

    def _begin(self, command: Literal["compile", "run"], number: int) -> None:
        assert self.worker is not None
        phase = "compiling" if command == "compile" else "running"
        self._started[number] = _Started(phase, time.monotonic())
        self.worker.send(command, number)

    def receive(self) -> Iterator[Result]:
        """Takes a message, or the process's end."""
        assert self.worker is not None
        try:
            number, what, result = self.worker.connection.recv()
        except (EOFError, ConnectionResetError):
            yield from self._ended()
            return
        if number == READY:
            self._is_ready = True
        elif what == "compiled":
            self._started[number] = _Started("compiled", time.monotonic())
        else:
            del self._started[number]
            yield result
            if what == "lost":
                self.close()
                yield from self._replace(result.detail)

    def _ended(self) -> Iterator[Result]:
        was_ready, said = self._is_ready, self.close()
        if not was_ready:
            yield from self._give_up(f"its process did not start: {said}")
            return
        under_way = [n for n, started in self._started.items() if started.phase != "compiled"]
        if len(under_way) > 1:
            self._alone |= set(under_way)
            self._put_back()
            return
        if under_way:
            [number] = under_way
            verb = "compiled" if self._started.pop(number).phase == "compiling" else "ran"
            yield self._jobs[number].result("FAILED", f"its process ended as it {verb}: {said}")
        yield from self._replace(said)

    def deadline(self, case_limit_s: float) -> float:
        """When (time.monotonic) something has taken too long; infinity if nothing is under way."""
        if self.worker is not None and not self._is_ready:
            return self._start_time + _START_LIMIT_S
        busy = [s.since for s in self._started.values() if s.phase != "compiled"]
        return min(busy, default=math.inf) + case_limit_s

    def end_late(self, case_limit_s: float) -> Iterator[Result]:
        """Fails the job that takes too long, and replaces the process."""
        if time.monotonic() < self.deadline(case_limit_s):
            return
        if not self._is_ready:
            self.close()
            yield from self._give_up(f"its process did not start within {_START_LIMIT_S:.0f} s")
            return
        busy = {n: s for n, s in self._started.items() if s.phase != "compiled"}
        number = min(busy, key=lambda number: busy[number].since)
        verb = "compile" if self._started.pop(number).phase == "compiling" else "run"
        why = f"took longer than {case_limit_s:g} s to {verb}"
        yield self._jobs[number].result("FAILED", why)
        self.close()
        yield from self._replace(f"{self._jobs[number].case.name} {why}")

    def _put_back(self) -> None:
        """What was under way is for the next process; first what is done alone."""
        first = sorted(self._started, key=lambda number: (number not in self._alone, number))
        self._waiting, self._started = first + self._waiting, {}

    def _replace(self, why: str) -> Iterator[Result]:
        """Leaves the rest to the next process, if there may be one after this fault."""
        self._put_back()
        self._num_faults += 1
        if self._num_faults == _MAX_FAULTS:
            yield from self._give_up(f"its process ended {_MAX_FAULTS} times, at last: {why}")

    def _give_up(self, why: str) -> Iterator[Result]:
        numbers, self._waiting, self._started = self._waiting, [], {}
        for number in numbers:
            yield self._jobs[number].result("not run", why)
