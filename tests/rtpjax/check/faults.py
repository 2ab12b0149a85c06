"""Implementations of an op that go wrong in their own ways; processes import them by name."""

from __future__ import annotations

import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels.registry import Implementation
from rtpjax.check import worker
from rtpjax.check.cases import Call, Case, Drawn
from rtpjax.check.compare import Job


def _numbers(drawn: Drawn, places: tuple[()]) -> Call:
    del places
    return (drawn.normal[:8],), {}


def twin(x: jax.Array) -> jax.Array:
    return 2 * x


def right(x: jax.Array, *, interpret: bool) -> jax.Array:
    del interpret
    return x + x


def wrong(x: jax.Array, *, interpret: bool) -> jax.Array:
    return 1.001 * right(x, interpret=interpret)


def raises(x: jax.Array, *, interpret: bool) -> jax.Array:
    raise KeyError("no such instruction")


def dies_in_tracing(x: jax.Array, *, interpret: bool) -> jax.Array:
    print("LLVM ERROR: cannot select", flush=True)
    os._exit(7)


def _calls(function: Any, x: jax.Array) -> jax.Array:
    return jax.pure_callback(function, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


def hangs(x: jax.Array, *, interpret: bool) -> jax.Array:
    return _calls(lambda x: time.sleep(600), x)


def dies(x: jax.Array, *, interpret: bool) -> jax.Array:
    return _calls(lambda x: os._exit(9), x)


def poisons(x: jax.Array, *, interpret: bool) -> jax.Array:
    """As an illegal address does: this and all that follows it in the process fails."""

    def fail(x: Any) -> Any:
        worker._device_works = lambda: False
        raise jax.errors.JaxRuntimeError("CUDA_ERROR_ILLEGAL_ADDRESS")

    return _calls(fail, x)


def needs_too_much(x: jax.Array, *, interpret: bool) -> jax.Array:
    return jnp.sum(jax.lax.broadcast(x, (2**36,)).at[0].set(x), axis=0)


def job(name: str, function: Any) -> Job:
    """A job of the lane `name`, whose case has the function's name."""
    case = Case(function.__name__, _numbers)
    reference = Implementation("reference", twin, ("cpu", "gpu"))
    return Job("double", Implementation(name, function, ("gpu",)), reference, case)
