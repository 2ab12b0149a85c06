"""Processes that compile jobs one after the other, and survive the compiler.

Some failures of the GPU compiler end the process it runs in. A worker's process takes many jobs,
since starting one takes longer than most compilations; where it dies, the job it had is the one
that failed, and the next job gets a new process.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any

_TIMEOUT_S = 1800  # seconds each, where the machine does nothing else


class Worker:
    """One process at a time.

    Args:
        command: Starts it: a line of stdin is a job, a line of stdout its result, both as JSON.
    """

    def __init__(self, command: list[str]):
        self._command = command
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[bytes] | None = None

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """The result, or `{"error": ...}`."""
        process = self._process or self._start()
        assert process.stdin is not None and process.stdout is not None
        late = threading.Timer(_TIMEOUT_S, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            is_late = not late.is_alive()
            late.cancel()
        if line:
            return json.loads(line)
        return {"error": self._last_words("took too long" if is_late else "")}

    def close(self) -> None:
        """Ends the process; another job starts one anew."""
        process, log, self._process, self._log = self._process, self._log, None, None
        if process is None or log is None:
            return
        with contextlib.suppress(BrokenPipeError):  # what it has not read, if it is gone
            process.communicate()
        log.close()

    def _start(self) -> subprocess.Popen[str]:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  outlives this call, like the process
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            # Or the last line of a traceback is a remark about it, not the error.
            env=os.environ | {"JAX_TRACEBACK_FILTERING": "off"},
        )
        return self._process

    def _last_words(self, why: str) -> str:
        """What the process that ended said at last."""
        assert self._process is not None and self._log is not None
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        self.close()
        said = [line for line in lines if line.strip()]
        return f"exit status {status}: {why or (said[-1][:300] if said else '')}"


class Workers:
    """Several, for calls from several threads."""

    def __init__(self, count: int):
        command = [sys.executable, "-m", "rtpjax.plan.job"]
        self._all = [Worker(command) for _ in range(count)]
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self._all:
            self._idle.put(worker)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """What an idle worker gives; see Worker.run."""
        worker = self._idle.get()
        try:
            return worker.run(request)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        """Ends all processes."""
        for worker in self._all:
            worker.close()
