"""A clean process with everything imported, from which workers are forked in milliseconds.

The server itself has threads and a device, with which no process can be forked; and a process that
begins from nothing imports for seconds. (The standard library's fork server imports the program's
main module into each child, and so would run a script again that starts a server.)

    server ── a socket, for each worker wanted ──► this process ── fork ──► worker, at that socket
           ◄── its process id ───────────────────
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from multiprocessing.connection import Connection

_PID = struct.Struct(">q")
_IMPORTED = ("server.app", "server.worker", "transformers")
_BEGIN = "from server.forks import fork_on_demand; fork_on_demand()"


class Forks:
    """The server's side. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        with theirs:
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BEGIN], stdin=theirs.fileno(), env=environment
            )

    def fork(self) -> Fork:
        """A new worker.

        Raises:
            OSError: There is none to be had: the process has ended.
        """
        ours, theirs = socket.socketpair()
        with theirs, self._lock:
            socket.send_fds(self._socket, [b"f"], [theirs.fileno()])
            answer = self._socket.recv(_PID.size, socket.MSG_WAITALL)
        if len(answer) < _PID.size:
            ours.close()
            raise OSError("the process that workers are forked from has ended")
        return Fork(Connection(ours.detach()), *_PID.unpack(answer))

    @property
    def is_alive(self) -> bool:
        """Whether there is a process to fork from."""
        return self._process.poll() is None

    def end(self) -> None:
        """Ends the process, but no worker."""
        self._socket.close()
        self._process.wait()


class Fork:
    """A worker, as the server has it.

    Attributes:
        connection: To it.
        pid: Its process.
    """

    def __init__(self, connection: Connection, pid: int):
        self.connection = connection
        self.pid = pid
        # A process id can be another process's later on; a descriptor cannot.
        self._descriptor = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None

    @property
    def is_alive(self) -> bool:
        """Whether an idle worker is there: one that says something has ended."""
        return not self.connection.poll(0)

    def kill(self) -> None:
        """Ends it, whatever it is at."""
        self.connection.close()
        with contextlib.suppress(ProcessLookupError):
            if self._descriptor is None:
                os.kill(self.pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


_running: list[Forks] = []
_starting = threading.Lock()


def forks() -> Forks:
    """Those of this process; begun when they are first asked for, and again if they have ended."""
    with _starting:
        if not _running or not _running[0].is_alive:
            _running[:] = [Forks()]
            atexit.register(_running[0].end)
        return _running[0]


def fork_on_demand() -> None:
    """The clean process: forks until the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which drains
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for workers
    for module in _IMPORTED:
        import_module(module)
    serve: Callable[[Connection], None] = import_module("server.worker").serve
    with socket.socket(fileno=0) as server:
        while True:
            asked, [*descriptors], _, _ = socket.recv_fds(server, 1, 1)
            if not asked:
                return
            pid = os.fork()
            if pid == 0:
                server.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                serve(Connection(descriptors[0]))
                os._exit(0)
            os.close(descriptors[0])
            server.sendall(_PID.pack(pid))
