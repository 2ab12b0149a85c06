"""One profile of each decode step: what each kernel takes.

A profile switches CUDA graphs off, so the kernels' times are right and the gaps between are not:
stage `forward` has the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

from rtpjax.engine.step import Model
from rtpjax.lab import kernels_of_trace
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, Program, Steps
from rtpjax.plan import hlo, step

_CALLS = 5
_NUM_PARTS = 25


def run(lab: Lab) -> None:
    steps = Steps(lab)
    rows = lab.pick(ROWS, (1,))
    with ThreadPoolExecutor(len(rows)) as pool:
        programs = {n: pool.submit(steps.compile, steps.decode(n)) for n in rows}
        steps.allocate()
    for n in rows:
        with lab.record.attempt(f"trace.{n}"):
            _trace(lab, steps, n, programs[n].result())


def _trace(lab: Lab, steps: Steps, n: int, program: Program) -> None:
    """Both programs, one by one: kernels of both have the same names."""
    vector = steps.vector(steps.decode(n))
    arguments = step.argument_names(steps.model, steps.precision, len(steps.caches.arrays))
    head = Model.of(steps.model, steps.precision, steps.mesh).head_of(arguments)
    forward = partial(steps.forward, program, vector)
    choose = partial(steps.choose, program.choose, program.outputs)
    found = [
        *_times(lab, f"forward_{n}", program.forward, arguments, forward),
        *_times(lab, f"choose_{n}", program.choose, head, choose),
    ]
    if not found:
        lab.record.failed(f"trace.{n}", "the profile has no kernels")
    for time in sorted(found, key=lambda time: -time.us)[:_NUM_PARTS]:
        lab.record.measured(
            f"trace.{n}.{time.part}", time.us / time.calls, "us", calls=time.calls / _CALLS
        )
    whole = sum(time.us for time in found) / _CALLS / 1e3
    lab.record.measured(f"trace.{n}.kernels", whole, "ms")


def _times(
    lab: Lab, name: str, program: Any, arguments: Sequence[str], call: Callable[[], jax.Array]
) -> list[kernels_of_trace.Time]:
    jax.block_until_ready(call())
    folder = lab.scratch / f"trace_{name}"
    with jax.profiler.trace(str(folder)):
        for _ in range(_CALLS - 1):
            call()
        jax.block_until_ready(call())
    names = kernels_of_trace.parts(hlo.parse(program.as_text() or ""), arguments)
    return kernels_of_trace.times(kernels_of_trace.events(folder), names)
