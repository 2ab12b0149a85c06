"""A process that compiles and runs comparisons for a parent, which may lose it at any time.

    parent ──► ("compile", i)  in a thread of its own    ──► (i, "compiled", None) or a result
    parent ──► ("run", i)      one at a time             ──► (i, "done", result)
                                                         ──► (i, "lost", result): an error that
                                                             this process does not recover from

A kernel that never ends, an illegal address (the driver then refuses all later work of the process)
or a compiler that aborts costs this process and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp

from pallas_kernels.registry import Target, current_target
from rtpjax.check.cases import Drawn, draw
from rtpjax.check.compare import Job, Programs, compile_job, run_job
from rtpjax.check.results import Result, brief

READY = -1  # in place of a job's number: the device is there
_SPAWN = multiprocessing.get_context("spawn")  # a fork of a process that runs JAX may hang


class Worker:
    """The parent's side: one process.

    Args:
        jobs: What it may be asked for, by number.
        target: What it has to run on.
        parallel: Most compilations at a time.
    """

    def __init__(self, jobs: Sequence[Job], target: Target, parallel: int):
        # It outlives this call, like the process.
        self._log: IO[bytes] = tempfile.NamedTemporaryFile(prefix="rtpjax-check-")  # noqa: SIM115
        self.connection, theirs = _SPAWN.Pipe()
        arguments = (theirs, self._log.name, tuple(jobs), target, parallel)
        self._process = _SPAWN.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def send(self, command: str, number: int) -> None:
        """Asks for `compile` or `run`; a process that is gone is noticed by its end of file."""
        with contextlib.suppress(BrokenPipeError):
            self.connection.send((command, number))

    def close(self) -> str:
        """Ends the process; what it said at last and how it ended."""
        self.connection.close()
        self._process.join(timeout=1)  # of one that is ending by itself the status tells more
        status = self._process.exitcode
        self._process.kill()
        self._process.join()
        said = _last_words(Path(self._log.name).read_text(errors="replace"))
        self._log.close()
        return f"exit status {status}{': ' if said else ''}{said}"


def _last_words(log: str) -> str:
    """The line that says most about an end: one of an error, else the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "CUDA_ERROR" in line or "F00" in line]
    return brief((errors or lines or [""])[-1])


def _serve(
    connection: Connection, log: str, jobs: tuple[Job, ...], target: Target, parallel: int
) -> None:
    """The process: ends with its parent's side of the connection."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(XLA_PYTHON_CLIENT_PREALLOCATE="false")  # others use the same device
    if target.platform == "cpu":
        jax.config.update("jax_platforms", "cpu")
    found = current_target()
    if found != target:
        raise SystemExit(f"RuntimeError: this process runs on {found}, not on {target}")
    state = _State(connection, jobs, target, jax.jit(draw)())
    state.tell(READY, "ready")
    with contextlib.suppress(EOFError):
        state.serve(parallel)
    os._exit(0)  # threads may still compile


@dataclasses.dataclass
class _State:
    connection: Connection
    jobs: tuple[Job, ...]
    target: Target
    drawn: Drawn
    programs: dict[int, Programs] = dataclasses.field(default_factory=dict)
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def tell(self, number: int, what: str, result: Result | None = None) -> None:
        with self.lock:
            self.connection.send((number, what, result))

    def serve(self, parallel: int) -> None:
        compilers, runner = ThreadPoolExecutor(parallel), ThreadPoolExecutor(1)
        while True:
            command, number = self.connection.recv()
            if command == "compile":
                future: Future[Any] = compilers.submit(compile_job, self.jobs[number], self.target)
                future.add_done_callback(partial(self._compiled, number))
            else:
                job, programs = self.jobs[number], self.programs.pop(number)
                future = runner.submit(run_job, job, programs, self.drawn, self.target)
                future.add_done_callback(partial(self._ran, number))

    def _compiled(self, number: int, future: Future[Programs | Result]) -> None:
        found = self._outcome(number, future)
        if isinstance(found, Result):
            self.tell(number, "done", found)
        else:
            self.programs[number] = found
            self.tell(number, "compiled")

    def _ran(self, number: int, future: Future[Result]) -> None:
        found = self._outcome(number, future)
        # The same from here on for every program: CUDA's errors of a kernel stay.
        is_lost = future.exception() is not None and not _device_works()
        self.tell(number, "lost" if is_lost else "done", found)

    def _outcome(self, number: int, future: Future[Any]) -> Any:
        """What a call returned; a failure for whatever it raised, which is the job's result."""
        error = future.exception()
        if error is None:
            return future.result()
        words = f"{type(error).__name__}: {error}"
        if "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower():
            words = f"the device has too little free memory for this case: {error}"
        return self.jobs[number].result("FAILED", brief(words))


def _device_works() -> bool:
    try:
        return int(jax.block_until_ready(jnp.int32(1) + jnp.int32(1))) == 2
    except jax.errors.JaxRuntimeError:
        return False
