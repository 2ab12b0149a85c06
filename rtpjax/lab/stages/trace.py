"""One profile of each decode step: what each kernel takes.

A profile switches CUDA graphs off, so the kernels' times are right and the gaps between are not:
stage `forward` has the whole.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import jax

from rtpjax.lab import kernels_of_trace
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import ROWS, Steps
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


def _trace(lab: Lab, steps: Steps, n: int, program: object) -> None:
    vector = steps.vector(steps.decode(n))
    jax.block_until_ready(steps.call(program, vector))
    folder = lab.scratch / f"trace_{n}"
    with jax.profiler.trace(str(folder)):
        jax.block_until_ready([steps.call(program, vector) for _ in range(_CALLS)])
    arguments = step.argument_names(steps.model, steps.precision, len(steps.caches))
    module = hlo.parse(program.as_text() or "")  # type: ignore[attr-defined]
    names = kernels_of_trace.parts(module, arguments)
    found = kernels_of_trace.times(kernels_of_trace.events(folder), names)
    if not found:
        lab.record.failed(f"trace.{n}", "the profile has no kernels")
    for time in found[:_NUM_PARTS]:
        lab.record.measured(
            f"trace.{n}.{time.part}", time.us / time.calls, "us", calls=time.calls / _CALLS
        )
    whole = sum(time.us for time in found) / _CALLS / 1e3
    lab.record.measured(f"trace.{n}.kernels", whole, "ms")
