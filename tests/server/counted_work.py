"""Counts the work of plain Python code: what it does, and not how long the machine takes for it."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

# An allocation of this size costs about as much as a line.
_BYTES_PER_LINE = 4


def work_of(steps: Iterable[Callable[[], Any]]) -> int:
    """Lines run and bytes made anew over all steps, in lines.

    Bytes are those by which the memory in use rises above what it was before a step: a copy of a
    text counts in full, although the text before it is let go.
    """
    num_lines = num_bytes = 0

    def on_line(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal num_lines
        num_lines += 1
        return on_line

    def on_call(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal num_lines
        num_lines += 1
        return on_line if "/server/" in frame.f_code.co_filename else None

    before = sys.gettrace()
    tracemalloc.start(1)
    try:
        for step in steps:
            tracemalloc.reset_peak()
            start, _ = tracemalloc.get_traced_memory()
            sys.settrace(on_call)
            step()
            sys.settrace(before)
            _, peak = tracemalloc.get_traced_memory()
            num_bytes += peak - start
    finally:
        sys.settrace(before)
        tracemalloc.stop()
    return num_lines + num_bytes // _BYTES_PER_LINE
