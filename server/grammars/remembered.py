"""Grammars of calls that were made before: agents send the same tools in every turn."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from rtpjax.engine.request import Grammar
from server.function_calls import CallOptions

StyleT = TypeVar("StyleT", bound=Hashable)
ParamsT = ParamSpec("ParamsT")
ResultT = TypeVar("ResultT", bound="Grammar | bool")

MAX_CHARS = 64 * 1024 * 1024


class Remembered:
    """What was made last; the least recently used is forgotten. Threads may share it.

    Args:
        max_chars: Most characters of grammars to keep.
    """

    def __init__(self, max_chars: int = MAX_CHARS):
        self._max_chars = max_chars
        self._num_chars = 0
        self._found: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], ResultT]) -> ResultT:
        """What was made for the key, or is made now. What raises is not kept."""
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()  # (two threads can make the same, which does no harm)
        with self._lock:
            if key not in self._found:
                self._found[key] = made
                self._num_chars += _num_chars(made)
            while self._num_chars > self._max_chars:
                _, forgotten = self._found.popitem(last=False)
                self._num_chars -= _num_chars(forgotten)
        return made


def _num_chars(made: Grammar | bool) -> int:
    return 1000 + (len(made.text) if isinstance(made, Grammar) else 0)


_grammars = Remembered()


def remembered(
    method: Callable[Concatenate[StyleT, CallOptions, ParamsT], ResultT],
) -> Callable[Concatenate[StyleT, CallOptions, ParamsT], ResultT]:
    """A method of a style of calls that makes the same of equal functions only once."""

    @wraps(method)
    def found(
        style: StyleT, calls: CallOptions, *args: ParamsT.args, **kwargs: ParamsT.kwargs
    ) -> ResultT:
        key = (method.__name__, style, calls.digest, args, tuple(sorted(kwargs.items())))
        return _grammars.get(key, lambda: method(style, calls, *args, **kwargs))

    return found
