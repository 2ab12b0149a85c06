"""The processes that chat templates are rendered in (`server.template_worker`)."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import select
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from rtpjax.errors import QueueFullError, RequestError
from server.template_worker import ANSWER_HEAD, GRACE_S, JOB_HEAD, Answer, Job, max_chars

_KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ")


class TemplateProcesses:
    """Up to `size` processes, made when they are needed. Threads may share it."""

    def __init__(self, size: int):
        self._size = size
        self._idle: list[_Process] = []
        self._count = 0
        self._changed = threading.Condition()

    def run(self, job: Job) -> Answer:
        """Does a job.

        Raises:
            QueueFullError: All processes are busy for as long as a job may take.
            RequestError: The job's variables are nested too deeply.
        """
        try:
            payload = pickle.dumps(job)
        except RecursionError as error:
            raise RequestError("messages: nested too deeply", param="messages") from error
        process = self._take(job.timeout_s)
        try:
            answer = process.run(payload, job.timeout_s + GRACE_S)
        except BaseException:
            process.end()
            self._give(None)
            raise
        if answer.is_last:
            process.end()
        self._give(None if answer.is_last else process)
        return answer

    def _take(self, timeout_s: float) -> _Process:
        with self._changed:
            is_free = self._changed.wait_for(
                lambda: self._idle or self._count < self._size, timeout_s
            )
            if not is_free:
                raise QueueFullError("the chat templates of other requests are slow; try again")
            while self._idle:
                process = self._idle.pop()
                if process.is_alive():
                    return process
                process.end()
                self._count -= 1
            self._count += 1
        return _Process()

    def _give(self, process: _Process | None) -> None:
        with self._changed:
            if process is None:
                self._count -= 1
            else:
                self._idle.append(process)
            self._changed.notify()

    def end(self) -> None:
        """Ends the processes that are idle."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for process in idle:
            process.end()


class _Process:
    """One process. A failure of any kind ends it."""

    def __init__(self) -> None:
        root = str(Path(__file__).parent.parent)
        # Not the server's environment, which has its keys.
        environment = {k: v for k, v in os.environ.items() if k in _KEPT_VARIABLES}
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, sys.path)])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "server.template_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd="/",
        )
        assert self._process.stdout is not None
        # (select() takes no file descriptors over 1023, of which a busy server has many.)
        self._poll = select.poll()
        self._poll.register(self._process.stdout, select.POLLIN)

    def is_alive(self) -> bool:
        """Whether the process is there; the system may have killed it while it was idle."""
        return self._process.poll() is None

    def run(self, payload: bytes, timeout_s: float) -> Answer:
        """Does a pickled job. A process that does not answer in time, or dies of it, is over."""
        assert self._process.stdin is not None
        end_s = time.monotonic() + timeout_s
        try:
            self._process.stdin.write(JOB_HEAD.pack(len(payload)) + payload)
            self._process.stdin.flush()
            described_len, text_len = ANSWER_HEAD.unpack(self._read(ANSWER_HEAD.size, end_s))
            if text_len > 4 * max_chars(len(payload)):  # bytes of a character in UTF-8
                return Answer("long", is_last=True)
            fields = json.loads(self._read(described_len, end_s))
            return Answer(text=self._read(text_len, end_s).decode(), **fields)
        except TimeoutError:
            return Answer("late", is_last=True)
        except (BrokenPipeError, EOFError):
            return Answer("memory", is_last=True)

    def _read(self, length: int, end_s: float) -> bytes:
        assert self._process.stdout is not None
        pieces: list[bytes] = []
        while length:
            left_s = max(0.0, end_s - time.monotonic())
            if not self._poll.poll(left_s * 1000):
                raise TimeoutError
            piece = os.read(self._process.stdout.fileno(), length)
            if not piece:
                raise EOFError
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def end(self) -> None:
        """Kills the process, which has nothing to save."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # of what it did not read any more
                pipe.close()
        self._process.wait()


@cache
def own_processes() -> TemplateProcesses:
    """Those for the templates of checkpoints."""
    return _ended_at_exit(max(2, min(4, os.cpu_count() or 1)))


@cache
def callers_processes() -> TemplateProcesses:
    """Those for the templates that requests bring: slow ones hold up nobody else."""
    return _ended_at_exit(2)


def _ended_at_exit(size: int) -> TemplateProcesses:
    processes = TemplateProcesses(size)
    atexit.register(processes.end)
    return processes
