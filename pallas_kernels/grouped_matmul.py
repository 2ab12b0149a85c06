"""Products of rows with the weights of their group: the experts of a mixture-of-experts layer.

    rows        │ 0 0 0 │ 1 │     │ 3 3 3 3 3 3 │ . . │    sorted by expert; expert 2 has none;
    starts      0       3   4     4            10          what stands after the last is unused

    grid (out / BLOCK_N, T / BLOCK_T + E)    expert e's tiles start at starts[e] // BLOCK_T + e, so
                                             that none is two experts'; the programs of others end
    x [BLOCK_T, BLOCK_K] ─┐                  at once
    w [BLOCK_N, BLOCK_K] ─┴► tensor cores, float32 sums ─► [T, out]

An expert without rows is not read: few rows read the weights of their experts once.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.paged_tiles import Ref, power_of_two
from pallas_kernels.registry import Op, Target, expect, refuse


def _check(x: jax.Array, weight: jax.Array, starts: jax.Array) -> None:
    """What every implementation asks of the shapes.

    Raises:
        ValueError: Names the argument, what it is and what it should be.
    """
    expect(OP.name, "x", x, ("T", "in"))
    expect(OP.name, "weight", weight, ("E", "out", "in"))
    expect(OP.name, "x", x, (x.shape[0], weight.shape[2]))
    expect(OP.name, "starts", starts, (weight.shape[0] + 1,), jnp.int32)


OP = Op("grouped_matmul", _check)


def grouped_matmul(
    x: jax.Array, weight: jax.Array, starts: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """Each group of rows of x times the transpose of its weight.

    Args:
        x: `[T, in]`, rows in the order of their groups.
        weight: `[E, out, in]` in x's dtype.
        starts: int32 `[E + 1]`, not decreasing, from 0; group e is rows starts[e]:starts[e + 1].
        implementation: A name from the registry, or None for the platform's default.

    Returns:
        float32 `[T, out]`. Rows of no group have an unspecified value.
    """
    return OP(x, weight, starts, implementation=implementation)


def _supports(target: Target, x: jax.Array, weight: jax.Array, starts: jax.Array) -> None:
    del starts
    formats = (jnp.bfloat16, jnp.float16)
    refuse(
        "xla",
        (
            target.compute_capability >= 80,
            f"compute capability {target.compute_capability}",
            "80 and later",
        ),
        (
            x.dtype in formats and weight.dtype == x.dtype,
            f"x of {x.dtype} and weights of {weight.dtype}",
            "bfloat16 and float16, the same in both",
        ),
        (x.shape[1] % 16 == 0, f"{x.shape[1]} inputs", "multiples of 16"),
    )


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        block_t: Rows of x of a program.
        block_n: Outputs of a program.
        block_k: Inputs read at once.
        num_stages: Tiles in flight.
        num_warps: Of a program.
    """

    block_t: int
    block_n: int = 64
    block_k: int = 64
    num_stages: int = 4
    num_warps: int = 4

    @staticmethod
    def of(x: jax.Array, weight: jax.Array) -> Tiling:
        """As many rows as a group has on average: more would multiply zeros."""
        average = -(-x.shape[0] // weight.shape[0])
        return Tiling(block_t=min(64, max(16, power_of_two(average))))


@OP.register("pallas", "gpu", supports=_supports)
def pallas(
    x: jax.Array, weight: jax.Array, starts: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """The kernel; interpret runs it on the CPU, slowly: for tests."""
    T, (E, out, _) = x.shape[0], weight.shape
    tiling = Tiling.of(x, weight)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        partial(_kernel, tiling=tiling),
        out_shape=jax.ShapeDtypeStruct((T, out), jnp.float32),
        grid=(pl.cdiv(out, tiling.block_n), T // tiling.block_t + E),
        in_specs=[anywhere, anywhere, anywhere],
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(
            num_warps=tiling.num_warps, num_stages=tiling.num_stages
        ),
        interpret=interpret,
        name="grouped_matmul",
    )(x, weight, starts)


def _kernel(x_ref: Ref, weight_ref: Ref, starts_ref: Ref, out_ref: Ref, *, tiling: Tiling) -> None:
    """Outputs of one tile of rows of one expert."""
    E, num_outputs, num_inputs = weight_ref.shape
    output_tile, tile = pl.program_id(0), pl.program_id(1)
    experts = lax.iota(jnp.int32, power_of_two(E))
    starts = plgpu.load(starts_ref.at[experts], mask=experts < E, other=0)
    is_before = (lax.div(starts, tiling.block_t) + experts <= tile) & (experts < E)
    expert = is_before.astype(jnp.int32).sum(axis=0) - 1
    start, end = starts_ref[expert], starts_ref[expert + 1]
    first = start + (tile - lax.div(start, tiling.block_t) - expert) * tiling.block_t

    @pl.when(first < end)
    def _() -> None:
        rows = first + lax.iota(jnp.int32, tiling.block_t)
        outputs = output_tile * tiling.block_n + lax.iota(jnp.int32, tiling.block_n)
        is_row, is_output = (rows < end)[:, None], outputs < num_outputs

        def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
            inputs = i * tiling.block_k + lax.broadcasted_iota(jnp.int32, (1, tiling.block_k), 1)
            is_input = inputs < num_inputs
            x = plgpu.load(x_ref.at[rows[:, None], inputs], mask=is_row & is_input, other=0.0)
            weight = plgpu.load(
                weight_ref.at[expert, outputs[:, None], inputs],
                mask=is_output[:, None] & is_input,
                other=0.0,
            )
            return total + plgpu.dot(x, weight, trans_b=True)

        sums = jnp.zeros((tiling.block_t, tiling.block_n), jnp.float32)
        sums = lax.fori_loop(0, -(-num_inputs // tiling.block_k), add_tile, sums)
        own = is_row & is_output[None, :]
        plgpu.store(out_ref.at[rows[:, None], outputs[None, :]], sums, mask=own)


@OP.register("xla", "cpu", "gpu")
def xla(x: jax.Array, weight: jax.Array, starts: jax.Array) -> jax.Array:
    """XLA's own ragged product."""
    contract_last = lax.RaggedDotDimensionNumbers(
        dot_dimension_numbers=(((1,), (2,)), ((), ())),
        lhs_ragged_dimensions=[0],
        rhs_group_dimensions=[0],
    )
    return lax.ragged_dot_general(
        x, weight, starts[1:] - starts[:-1], contract_last, preferred_element_type=jnp.float32
    )


@OP.register("reference", "cpu", "gpu")
def reference(x: jax.Array, weight: jax.Array, starts: jax.Array) -> jax.Array:
    """The plain twin: every expert for every row, and each row's own is picked."""
    expert = jnp.searchsorted(starts[1:], jnp.arange(x.shape[0]), side="right")
    expert = expert.clip(0, weight.shape[0] - 1)
    every = jnp.einsum("ti,eoi->teo", x.astype(jnp.float32), weight.astype(jnp.float32))
    return jnp.take_along_axis(every, expert[:, None, None], axis=1)[:, 0]
