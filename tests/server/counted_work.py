"""Counts the work of the server's code: what it does, and not how long a machine takes for it."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

# So many bytes count as one line of Python. (A processor copies more in that time; here a copy of
# all that there is, made again and again, shall be seen in short texts.)
_BYTES_PER_LINE = 4


class Work:
    """`with Work() as work:` counts what the block does; `work.done` says how much it was.

    Lines of the server's code count, and bytes by which its memory rises above what it was at the
    beginning of a lap: a copy of a text counts in full, although the text before it is let go.
    """

    def __init__(self) -> None:
        self._num_lines = self._num_bytes = 0
        self._start = 0

    def __enter__(self) -> Work:
        self._before = sys.gettrace()
        tracemalloc.start(1)
        self.lap()
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)
        self.lap()
        tracemalloc.stop()

    def lap(self) -> None:
        """Ends a lap: one piece has been worked on."""
        now, peak = tracemalloc.get_traced_memory()
        self._num_bytes += peak - self._start if self._start else 0
        tracemalloc.reset_peak()
        self._start = now

    @property
    def done(self) -> int:
        """All of it, in lines."""
        return self._num_lines + self._num_bytes // _BYTES_PER_LINE

    def _on_call(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any] | None:
        is_ours = (
            "/server/" in frame.f_code.co_filename and "/tests/" not in frame.f_code.co_filename
        )
        return self._on_line if is_ours else None

    def _on_line(self, frame: FrameType, event: str, arg: Any) -> Callable[..., Any]:
        self._num_lines += 1
        return self._on_line
