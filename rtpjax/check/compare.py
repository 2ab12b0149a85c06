"""One implementation of an op against its plain twin with one case: three programs.

    make      the case's numbers, on the device
    kernel    what is checked, alone, so that it can be timed
    judge     the twin at full precision, and the largest error: one number leaves the device

They are compiled without numbers, and may be compiled beside others that run.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import cases as attention
from pallas_kernels.registry import Implementation, Target, UnsupportedError, tracing_for
from rtpjax.check.cases import Call, Case, Drawn, draw
from rtpjax.check.results import Result, judged

INTERPRETED_AS = Target("gpu", 90)  # whose limits hold where kernels are interpreted
# The twin's products are not what is checked: XLA need not look for their fastest tiles.
_GPU_OPTIONS: dict[str, str | bool] = {"xla_gpu_autotune_level": "0"}
_NUM_TIMED = 10


@dataclasses.dataclass(frozen=True)
class Job:
    """A comparison; can be pickled."""

    op: str
    implementation: Implementation
    twin: Implementation
    case: Case

    def result(self, status: Any, detail: str, **figures: float) -> Result:
        """A result of this."""
        name = self.implementation.name
        return Result(self.op, self.case.name, status, detail, implementation=name, **figures)


@dataclasses.dataclass(frozen=True)
class Programs:
    """What compile_job made, and the seconds that it took."""

    make: Callable[[Drawn, Any], Call]
    kernel: Callable[..., Any]
    judge: Callable[..., jax.Array]
    compile_s: float


def compile_job(job: Job, target: Target) -> Programs | Result:
    """Traces and compiles; a result where the implementation refuses the case.

    Raises:
        Exception: Whatever tracing or the compiler raises.
    """
    call = job.case.shapes()
    if job.implementation.supports is not None:
        limits = target if target.platform == "gpu" else INTERPRETED_AS
        try:
            job.implementation.supports(limits, *call[0], **call[1], **job.case.options)
        except UnsupportedError as error:
            return job.result("refused", str(error))
    started = time.perf_counter()
    options = _GPU_OPTIONS if target.platform == "gpu" else None
    compiled = [lowered.compile(options) for lowered in lowerings(job, target, call)]
    return Programs(*compiled, compile_s=time.perf_counter() - started)


def lowerings(job: Job, target: Target, call: Call) -> Iterator[jax.stages.Lowered]:
    """The three programs for a device, with call's shapes (which may have shardings)."""
    case, function = job.case, job.implementation.function
    own = case.tolerance_of.get(job.implementation.name, case.tolerance)
    case = dataclasses.replace(case, tolerance=own)
    if target.platform != "gpu":
        function = partial(function, interpret=True)

    def run(function: Callable[..., Any], call: Call) -> Any:
        return function(*call[0], **call[1], **case.options)

    def judge(call: Call, got: Any) -> jax.Array:
        with jax.default_matmul_precision("highest"):
            return largest_error(got, run(job.twin.function, call), case)

    kernel = jax.jit(lambda call: run(function, call))
    drawn = jax.eval_shape(draw)
    with tracing_for(target):
        yield jax.jit(case.make).lower(drawn, case.places)
        yield (lowered := kernel.lower(call))
        yield jax.jit(judge).lower(call, lowered.out_info)


def largest_error(got: Any, want: Any, case: Case) -> jax.Array:
    """float32 scalar: the largest error as a part of what is tolerated; inf for NaN."""
    errors = [
        _worst(g, w, case) for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    ]
    return jnp.max(jnp.stack(errors))


def _worst(got: jax.Array, want: jax.Array, case: Case) -> jax.Array:
    tolerance = case.tolerance or attention.TOLERANCE[jnp.dtype(got.dtype).name]
    got, want = (x[: case.num_rows].astype(jnp.float32) for x in (got, want))
    # Sums of many products are as exact as their terms are large, not as they happen to cancel.
    size = jnp.maximum(1.0, jnp.sqrt(jnp.mean(jnp.square(want))))
    errors = jnp.abs(got - want) / (tolerance * (size + jnp.abs(want)))
    return jnp.max(jnp.where(jnp.isnan(errors), jnp.inf, errors), initial=0.0)


def run_job(job: Job, programs: Programs, drawn: Drawn, target: Target) -> Result:
    """Runs and compares.

    Raises:
        Exception: Whatever the device raises.
    """
    call = programs.make(drawn, job.case.places)
    got = jax.block_until_ready(programs.kernel(call))
    error = float(programs.judge(call, got))
    figures = {"compile_s": round(programs.compile_s, 2)}
    if target.platform == "gpu":
        figures["run_us"] = round(1e6 * _seconds(partial(programs.kernel, call)), 1)
    return judged(job.result, error, **figures)


def _seconds(run: Callable[[], Any]) -> float:
    """Seconds of a call that is dispatched again and again with the same arrays."""
    started = time.perf_counter()
    jax.block_until_ready([run() for _ in range(_NUM_TIMED)][-1])
    return (time.perf_counter() - started) / _NUM_TIMED
