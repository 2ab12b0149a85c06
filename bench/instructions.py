"""Counts the machine instructions of a thread of another process: work that no load changes.

Times on a machine that has other work to do say little about small differences: threads beside it
take its caches. The processor's own counters are seldom there in a virtual machine. So the thread
is run one instruction at a time (ptrace, Linux), which takes some 20 microseconds for each. What
the kernel does for it is not counted.

    counted thread    mark() ... work ... mark() ... work ... mark()
    Counter.count(2)              n1                  n2             -> [n1, n2]
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from typing import Any

_CONT, _SINGLESTEP, _DETACH, _SEIZE = 7, 9, 17, 0x4206
_EVERY_THREAD = 0x40000000  # __WALL
_MARK = signal.SIGUSR1


def ignore_marks() -> None:
    """Once, in the process that is counted: a mark is a signal, and would end it."""
    signal.signal(_MARK, signal.SIG_IGN)


def mark() -> None:
    """Where a count begins, or ends and the next begins; nothing happens if nobody counts."""
    signal.pthread_kill(threading.get_ident(), _MARK)


class Counter:
    """Holds on to a thread of a process that this one has started; made and used in one thread.

    Args:
        thread: threading.get_native_id() of it.

    Raises:
        OSError: The system does not allow it, or is not Linux.
    """

    def __init__(self, thread: int):
        if sys.platform != "linux":
            raise OSError(f"instructions are counted with Linux's ptrace; this is {sys.platform}")
        self._thread = thread
        self._libc: Any = ctypes.CDLL(None, use_errno=True)
        self._libc.ptrace.argtypes = ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
        self._ptrace(_SEIZE)

    def count(self, num_counts: int) -> list[int]:
        """Instructions between the thread's next marks, after which it is let go.

        Args:
            num_counts: How many; the thread makes one mark more.

        Raises:
            OSError: The thread ended before.
        """
        status, counts, steps = ctypes.c_int(), [], -1  # -1: before the first mark
        wait, place = self._libc.waitpid, ctypes.byref(status)
        while wait(self._thread, place, _EVERY_THREAD) == self._thread:
            if not os.WIFSTOPPED(status.value):
                break
            reason = os.WSTOPSIG(status.value)
            if reason == _MARK:
                if steps >= 0:
                    counts.append(steps)
                if len(counts) == num_counts:
                    self._ptrace(_DETACH)
                    return counts
                steps = 0
            elif reason == signal.SIGTRAP and steps >= 0:
                steps += 1
            passed_on = 0 if reason in (_MARK, signal.SIGTRAP) else reason
            self._ptrace(_CONT if steps < 0 else _SINGLESTEP, passed_on)
        raise OSError(f"thread {self._thread} ended after {len(counts)} of {num_counts} counts")

    def _ptrace(self, request: int, number: int = 0) -> None:
        if self._libc.ptrace(request, self._thread, None, number) == -1:
            error = ctypes.get_errno()
            raise OSError(error, f"ptrace of thread {self._thread}: {os.strerror(error)}")
