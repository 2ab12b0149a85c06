"""What this GPU reaches in the simplest programs: what kernels can be held against."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from rtpjax.engine.step import COMMAND_BUFFERS
from rtpjax.lab.stage import Lab
from rtpjax.lab.steps import DataSheet, random_array
from rtpjax.lab.timing import seconds_each

_TILE = 4096  # int32 numbers that a program reads at once
_L2_BYTES = 24 << 20  # half of an H100's
_PROGRAMS = 264  # two for each of its multiprocessors
_LAUNCHES = 200


def run(lab: Lab) -> None:
    sheet = DataSheet.of(lab)
    calls = lab.pick(5, 1)
    memory = (jax.devices()[0].memory_stats() or {}).get("bytes_limit", 1 << 30)
    size = lab.pick(min(2 << 30, memory // 8) >> 26 << 26, 1 << 20)
    with lab.record.attempt("ceiling.read"):
        numbers = random_array("read", (size // 2,))
        add_up = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
        s = seconds_each(partial(add_up, numbers), calls=calls)
        lab.record.measured("ceiling.read", size / s / 1e9, "GB/s", limit=sheet.gb_s(), bytes=size)
    with lab.record.attempt("ceiling.copy"):
        half = numbers[: size // 4]
        more = jax.jit(lambda x: x + jnp.bfloat16(1))
        s = seconds_each(partial(more, half), calls=calls)
        lab.record.measured("ceiling.copy", size / s / 1e9, "GB/s", limit=sheet.gb_s())
    numbers = half = None
    with lab.record.attempt("ceiling.l2"):
        _l2(lab, calls)
    with lab.record.attempt("ceiling.dot"):
        n = lab.pick(8192, 256)
        a, b = random_array("a", (n, n)), random_array("b", (n, n))
        dot = jax.jit(lambda a, b: lax.dot(a, b, preferred_element_type=jnp.bfloat16))
        s = seconds_each(partial(dot, a, b), calls=calls)
        lab.record.measured("ceiling.dot", 2 * n**3 / s / 1e12, "TFLOP/s", limit=sheet.tflop_s())
    with lab.record.attempt("ceiling.launch"):
        _launches(lab, calls)
    with lab.record.attempt("ceiling.dispatch"):
        tiny, x = jax.jit(lambda x: x + 1), jnp.ones((8,))
        s = seconds_each(partial(tiny, x), calls=lab.pick(500, 5))
        lab.record.measured("ceiling.dispatch", s * 1e6, "us")
    with lab.record.attempt("ceiling.round_trip"):
        vector = np.zeros(4096, np.int32)
        s = seconds_each(lambda: np.asarray(jax.device_put(vector)), calls=lab.pick(100, 2))
        lab.record.measured("ceiling.round_trip", s * 1e6, "us", bytes=vector.nbytes)


def _l2(lab: Lab, calls: int) -> None:
    """All programs read all of what fits into L2, each in an order of its own."""
    num_tiles = lab.pick(_L2_BYTES // (4 * _TILE), 8)
    programs, each = lab.pick((_PROGRAMS, 256), (2, 4))
    numbers = random_array("l2", (num_tiles, _TILE), jnp.int32)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    read = pl.pallas_call(
        partial(_read_kernel, num_tiles=num_tiles, programs=programs, each=each),
        out_shape=jax.ShapeDtypeStruct((programs, _TILE), jnp.int32),
        grid=(programs,),
        in_specs=[anywhere],
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=4),
        interpret=lab.is_small,
        name="l2_read",
    )
    s = seconds_each(partial(jax.jit(read), numbers), calls=4 * calls)
    lab.record.measured("ceiling.l2", 4 * _TILE * programs * each / s / 1e9, "GB/s")


def _read_kernel(in_ref: Any, out_ref: Any, *, num_tiles: int, programs: int, each: int) -> None:
    program, columns = pl.program_id(0), lax.iota(jnp.int32, _TILE)

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        tile = lax.rem(program + i * programs, num_tiles)
        return total ^ plgpu.load(in_ref.at[tile, columns])

    total = lax.fori_loop(0, each, add, jnp.zeros((_TILE,), jnp.int32))
    plgpu.store(out_ref.at[program, columns], total)


def _launches(lab: Lab, calls: int) -> None:
    """Small kernels that wait for each other, in one program: with graphs, and without."""
    count = lab.pick(_LAUNCHES, 4)
    one = pl.pallas_call(
        _tiny_kernel,
        out_shape=jax.ShapeDtypeStruct((128,), jnp.float32),
        interpret=lab.is_small,
        compiler_params=plgpu.CompilerParams(num_warps=4),
        name="tiny",
    )

    def chain(x: jax.Array) -> jax.Array:
        for _ in range(count):
            x = one(x)
        return x

    x = jnp.ones((128,), jnp.float32)
    lowered = jax.jit(chain).lower(x)
    ways: dict[str, dict[str, str | bool]] = {
        "ceiling.launch": {},
        "ceiling.launch_no_graph": {COMMAND_BUFFERS: ""},
        "ceiling.launch_no_pdl": {"xla_gpu_enable_pdl": False},
    }
    for id, options in ways.items():
        with lab.record.attempt(id):
            program = lowered.compile(options)
            s = seconds_each(partial(program, x), calls=4 * calls)
            lab.record.measured(id, s / count * 1e6, "us")


def _tiny_kernel(in_ref: Any, out_ref: Any) -> None:
    out_ref[...] = in_ref[...] + 1.0
