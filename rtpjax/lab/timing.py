"""Seconds of device work, without what starting it costs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax


def seconds_each(call: Callable[[], Any], *, calls: int, rounds: int = 3) -> float:
    """Seconds of a call: calls follow each other, and only the last one is waited for.

    Devices run programs in order, so the host's own time is hidden as long as a call takes longer
    on the device than its start. The least of the rounds counts: others only add to it.

    Args:
        call: Starts the work; returns arrays of it.
        calls: Of a round.
        rounds: How many there are, after one that is not counted.
    """
    best, last = float("inf"), None
    for number in range(rounds + 1):
        started = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        if number:
            best = min(best, (time.perf_counter() - started) / calls)
    return best
