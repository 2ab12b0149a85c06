"""Products with quantized weights: int8, float8_e4m3fn or int4, with scales for groups of inputs.

    weight   int8 or float8_e4m3fn [out, in], or int4: uint8 [out, in / 2]
    scales   float32 [out, in / g];  one group of all inputs is a scale per output
    zeros    whole numbers [out, in / g], or None: 0, and 8 for int4

    w[o, i] = (number[o, i] - zeros[o, i // g]) * scales[o, i // g]

    int4: one group of g inputs is g / 2 bytes:   byte      0      1    ...  g/2 - 1
                                                  low       0      1    ...  g/2 - 1    input
                                                  high     g/2  g/2 + 1 ...   g - 1     input

Low and high nibbles of a group are each consecutive inputs, so that a kernel multiplies them with
two consecutive tiles of x and nothing is interleaved. GPTQ and AWQ weights are converted at load.
An fp8 weight with a scale per block of 128 x 128 has the block's scale for each of its outputs.

The kernel is for few rows, where reading the weights is the cost:

    grid (out / BLOCK_N, T / BLOCK_T)    x [BLOCK_T, BLOCK_K] ─┐
                                         w [BLOCK_N, BLOCK_K] ─┴► converted to x's format, tensor
    one program loops over all inputs                             cores, float32 sums ─► [T, out]
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


def _check(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> None:
    """What every implementation asks of the shapes.

    Raises:
        ValueError: Names the argument, what it is and what it should be.
    """
    check = partial(expect, OP.name)
    check("x", x, ("T", "in"))
    check("weight", weight, ("out", "in"))
    out, num_inputs = weight.shape[0], x.shape[1]
    is_int4 = weight.dtype == jnp.uint8
    check("weight", weight, (out, num_inputs // 2 if is_int4 else num_inputs))
    check("scales", scales, (out, "in / group"))
    groups = scales.shape[1]
    if groups == 0 or num_inputs % (2 * groups if is_int4 else groups):
        raise ValueError(
            f"{OP.name}: {groups} groups do not divide {num_inputs} inputs into groups of "
            f"{'an even' if is_int4 else 'a whole'} number of inputs."
        )
    if zeros is not None:
        check("zeros", zeros, scales.shape, jnp.uint8 if is_int4 else None)


OP = Op("quantized_matmul", _check)

_CONTRACT_LAST = (((1,), (1,)), ((), ()))


def quantized_matmul(
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """x times the transpose of a quantized weight.

    Args:
        x: `[T, in]`, float.
        weight: int8 or float8_e4m3fn `[out, in]`, or packed int4, uint8 `[out, in / 2]`.
        scales: float32 `[out, groups]`.
        zeros: Integers `[out, groups]`, the number that means 0; if None 0, and 8 for int4.
        implementation: A name from the registry, or None for the platform's default.

    Returns:
        float32 `[T, out]`.
    """
    return OP(x, weight, scales, zeros, implementation=implementation)


def group_size(weight: jax.Array, scales: jax.Array) -> int:
    """Inputs that share a scale."""
    return weight.shape[1] * (2 if weight.dtype == jnp.uint8 else 1) // scales.shape[1]


def pack_int4(nibbles: jax.Array, group: int) -> jax.Array:
    """Numbers from 0 to 15, `[out, in]`, in groups of so many inputs -> uint8 `[out, in / 2]`."""
    halves = nibbles.astype(jnp.uint8).reshape(nibbles.shape[0], -1, 2, group // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(nibbles.shape[0], -1)


def dequantized(weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None) -> jax.Array:
    """float32 `[out, in]`."""
    grouped = weight.reshape(*scales.shape, -1)
    zero = 0.0
    if weight.dtype == jnp.uint8:
        grouped, zero = jnp.concatenate([grouped & 15, grouped >> 4], axis=-1), 8.0
    if zeros is not None:
        zero = zeros.astype(jnp.float32)[:, :, None]
    values = (grouped.astype(jnp.float32) - zero) * scales[:, :, None]
    return values.reshape(weight.shape[0], -1)


def _supports(
    target: Target,
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
) -> None:
    is_fp8 = weight.dtype == jnp.float8_e4m3fn
    # Compiled for 8.0, Triton's conversion of fp8 ends the process.
    least = 89 if is_fp8 else 80
    group = group_size(weight, scales)
    is_channel = scales.shape[1] == 1 and weight.dtype != jnp.uint8 and zeros is None
    refuse(
        "xla",
        (
            target.compute_capability >= least,
            f"{weight.dtype} at compute capability {target.compute_capability}",
            f"{least} and later",
        ),
        (x.dtype in (jnp.bfloat16, jnp.float16), f"x of {x.dtype}", "bfloat16 and float16"),
        (
            is_fp8 or weight.dtype in (jnp.int8, jnp.uint8),
            f"a weight of {weight.dtype}",
            "int8, float8_e4m3fn, and int4 packed in uint8",
        ),
        (x.shape[1] % 16 == 0, f"{x.shape[1]} inputs", "multiples of 16"),
        (
            is_channel or group in (32, 64, 128),
            f"group {group}",
            "groups of 32, 64 and 128, and a scale per output without zeros",
        ),
        (weight.size <= 2**31, f"a weight of {weight.size} bytes", f"up to {2**31} bytes"),
    )


@OP.register("pallas", "gpu", supports=_supports)
def pallas(
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> jax.Array:
    """The kernel; interpret runs it on the CPU, slowly: for tests."""
    T, out = x.shape[0], weight.shape[0]
    tiling = Tiling.of(x, weight, scales)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    arrays = (x, weight, scales, zeros)
    is_int4, is_channel = weight.dtype == jnp.uint8, scales.shape[1] == 1 and zeros is None
    kernel = _int4_kernel if is_int4 else _channel_kernel if is_channel else _group_kernel
    return pl.pallas_call(
        partial(kernel, tiling=tiling),
        out_shape=jax.ShapeDtypeStruct((T, out), jnp.float32),
        grid=(pl.cdiv(out, tiling.block_n), pl.cdiv(T, tiling.block_t)),
        in_specs=jax.tree.map(lambda _: anywhere, arrays),
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(
            num_warps=tiling.num_warps, num_stages=tiling.num_stages
        ),
        interpret=interpret,
        name="quantized_matmul",
    )(*arrays)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        block_t: Rows of x of a program.
        block_n: Outputs of a program.
        block_k: Inputs read at once; a group where there are several.
        num_stages: Tiles in flight.
        num_warps: Of a program.
    """

    block_t: int
    block_n: int
    block_k: int
    num_stages: int = 3
    num_warps: int = 4

    @staticmethod
    def of(x: jax.Array, weight: jax.Array, scales: jax.Array) -> Tiling:
        """Small tiles of outputs for few rows, so that 4,096 outputs fill a GPU without a split.

        A program then has a multiprocessor for itself, and needs some 16 KB of weights in flight.
        """
        block_t = min(64, max(16, power_of_two(x.shape[0])))
        block_n = 32 if x.shape[0] <= 64 else 64
        is_few = block_t <= 32
        group = group_size(weight, scales)
        if weight.dtype == jnp.uint8:
            return Tiling(block_t, block_n, group, num_stages=8 if is_few else 3)
        if scales.shape[1] > 1:
            return Tiling(block_t, block_n, group, num_stages=4 if is_few else 3)
        return Tiling(block_t, block_n, block_k=256 if is_few else 128 if block_n == 32 else 64)


def _tile_places(
    x_ref: Ref, weight_ref: Ref, tiling: Tiling
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    """Rows of x and outputs of this program, each with which of them there are."""
    outputs = pl.program_id(0) * tiling.block_n + lax.iota(jnp.int32, tiling.block_n)
    rows = pl.program_id(1) * tiling.block_t + lax.iota(jnp.int32, tiling.block_t)
    return (rows, rows < x_ref.shape[0]), (outputs, outputs < weight_ref.shape[0])


def _channel_kernel(
    x_ref: Ref, weight_ref: Ref, scales_ref: Ref, _: None, out_ref: Ref, *, tiling: Tiling
) -> None:
    """Outputs of one tile; the scale of an output multiplies its sum."""
    (rows, is_row), (outputs, is_output) = _tile_places(x_ref, weight_ref, tiling)
    num_inputs = x_ref.shape[1]

    def add_tile(i: jax.Array, total: jax.Array) -> jax.Array:
        inputs = i * tiling.block_k + lax.broadcasted_iota(jnp.int32, (1, tiling.block_k), 1)
        is_input = inputs < num_inputs
        x = plgpu.load(x_ref.at[rows[:, None], inputs], mask=is_row[:, None] & is_input, other=0.0)
        weight = plgpu.load(
            weight_ref.at[outputs[:, None], inputs], mask=is_output[:, None] & is_input, other=0
        )
        return total + plgpu.dot(x, weight.astype(x.dtype), trans_b=True)

    start = jnp.zeros((tiling.block_t, tiling.block_n), jnp.float32)
    total = lax.fori_loop(0, -(-num_inputs // tiling.block_k), add_tile, start)
    scales = plgpu.load(scales_ref.at[outputs, 0], mask=is_output, other=0.0)
    own = is_row[:, None] & is_output[None, :]
    plgpu.store(out_ref.at[rows[:, None], outputs[None, :]], total * scales[None, :], mask=own)


def _group_kernel(
    x_ref: Ref,
    weight_ref: Ref,
    scales_ref: Ref,
    zeros_ref: Ref | None,
    out_ref: Ref,
    *,
    tiling: Tiling,
) -> None:
    """Outputs of one tile, a group of inputs at a time; its scale multiplies the group's sum."""
    (rows, is_row), (outputs, is_output) = _tile_places(x_ref, weight_ref, tiling)

    def add_group(i: jax.Array, total: jax.Array) -> jax.Array:
        inputs = i * tiling.block_k + lax.broadcasted_iota(jnp.int32, (1, tiling.block_k), 1)
        x = plgpu.load(x_ref.at[rows[:, None], inputs], mask=is_row[:, None], other=0.0)
        weight = plgpu.load(
            weight_ref.at[outputs[:, None], inputs], mask=is_output[:, None], other=0
        )
        if zeros_ref is not None:
            zeros = plgpu.load(zeros_ref.at[outputs, i], mask=is_output, other=0)
            # Whole numbers up to 256 in size: exact in bfloat16.
            weight = weight.astype(jnp.int32) - zeros.astype(jnp.int32)[:, None]
        sums = plgpu.dot(x, weight.astype(x.dtype), trans_b=True)
        scales = plgpu.load(scales_ref.at[outputs, i], mask=is_output, other=0.0)
        return total + sums * scales[None, :]

    start = jnp.zeros((tiling.block_t, tiling.block_n), jnp.float32)
    total = lax.fori_loop(0, scales_ref.shape[1], add_group, start)
    own = is_row[:, None] & is_output[None, :]
    plgpu.store(out_ref.at[rows[:, None], outputs[None, :]], total, mask=own)


def _int4_kernel(
    x_ref: Ref,
    weight_ref: Ref,
    scales_ref: Ref,
    zeros_ref: Ref | None,
    out_ref: Ref,
    *,
    tiling: Tiling,
) -> None:
    """Outputs of one tile, a group of inputs at a time; its scale multiplies the group's sum."""
    (rows, is_row), (outputs, is_output) = _tile_places(x_ref, weight_ref, tiling)
    half = tiling.block_k // 2

    def add_group(i: jax.Array, total: jax.Array) -> jax.Array:
        column = lax.broadcasted_iota(jnp.int32, (1, half), 1)
        places = outputs[:, None], i * half + column
        packed = plgpu.load(weight_ref.at[places], mask=is_output[:, None], other=0)
        packed = packed.astype(jnp.int32)
        scales = plgpu.load(scales_ref.at[outputs, i], mask=is_output, other=0.0)
        zeros = jnp.full(outputs.shape, 8, jnp.int32)
        if zeros_ref is not None:
            loaded = plgpu.load(zeros_ref.at[outputs, i], mask=is_output, other=0)
            zeros = loaded.astype(jnp.int32)

        def product(nibbles: jax.Array, first: jax.Array) -> jax.Array:
            x = plgpu.load(x_ref.at[rows[:, None], first + column], mask=is_row[:, None], other=0.0)
            weight = (nibbles - zeros[:, None]).astype(x.dtype)  # small integers: exact
            return plgpu.dot(x, weight, trans_b=True)

        low = product(packed & 15, i * tiling.block_k)
        high = product(packed >> 4, i * tiling.block_k + half)
        return total + (low + high) * scales[None, :]

    start = jnp.zeros((tiling.block_t, tiling.block_n), jnp.float32)
    total = lax.fori_loop(0, scales_ref.shape[1], add_group, start)
    own = is_row[:, None] & is_output[None, :]
    plgpu.store(out_ref.at[rows[:, None], outputs[None, :]], total, mask=own)


@OP.register("dynamic", "cpu")
def dynamic(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """int8 by int8 products: each row of x is rounded to 255 levels of its largest number.

    A number far larger than the rest of its row costs the rest most of these levels, so weights are
    to be kept rotated and x given so (rtpjax.models.quantization): docs/benchmarks.md has what
    that is worth. A second int8 for what the first leaves is as exact, but at 16 rows the products
    then take as long as those of bf16.

    The CPU has such products and none of bf16 by int8; converting the weights takes longer than a
    product of bf16. What has no such products (int4, fp8, groups) is converted as in `xla`.
    One row misses the fast path, so there are at least two.
    """
    if weight.dtype != jnp.int8 or scales.shape[1] > 1 or zeros is not None:
        return xla(x, weight, scales, zeros)
    T = x.shape[0]
    x = jnp.pad(x.astype(jnp.float32), ((0, max(0, 2 - T)), (0, 0)))
    steps = jnp.maximum(jnp.abs(x).max(axis=1, keepdims=True) / 127, 1e-30)
    levels = jnp.round(x / steps).astype(jnp.int8)
    sums = lax.dot_general(levels, weight, _CONTRACT_LAST, preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * steps * scales.T)[:T]


@OP.register("xla", "cpu", "gpu")
def xla(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """A product with the weights converted to x's format."""
    if weight.dtype != jnp.uint8 and scales.shape[1] == 1 and zeros is None:
        sums = lax.dot_general(
            x, weight.astype(x.dtype), _CONTRACT_LAST, preferred_element_type=jnp.float32
        )
        return sums * scales.T
    converted = dequantized(weight, scales, zeros).astype(x.dtype)
    return lax.dot_general(x, converted, _CONTRACT_LAST, preferred_element_type=jnp.float32)


@OP.register("reference", "cpu", "gpu")
def reference(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """The plain twin: everything in float32."""
    return jnp.einsum("ti,oi->to", x.astype(jnp.float32), dequantized(weight, scales, zeros))
