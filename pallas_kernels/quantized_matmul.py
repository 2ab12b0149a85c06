"""Products with one quantized weight: int8, float8_e4m3fn or int4 (pallas_kernels.quantized).

The kernel is row_matmul's, with a float32 result and nothing before or after the product. Layers of
a model call row_matmul itself; this op is what is left: output matrices, GPTQ's reordered inputs,
and the CPU's int8 products.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import row_matmul
from pallas_kernels.quantized import CONTRACT_LAST, Quantized, dequantized, product
from pallas_kernels.registry import Op, Target, expect


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
        weight: Its numbers: int8 or float8_e4m3fn `[out, in]`, or int4, uint8 `[out, in / 2]`.
        scales: float32 `[out, groups]`.
        zeros: Integers `[out, groups]`, the number that means 0; if None 0, and 8 for int4.
        implementation: A name from the registry, or None for the platform's default.

    Returns:
        float32 `[T, out]`.
    """
    return OP(x, weight, scales, zeros, implementation=implementation)


def _supports(
    target: Target,
    x: jax.Array,
    weight: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None = None,
) -> None:
    supports = row_matmul.OP.implementations["pallas"].supports
    assert supports is not None
    supports(target, *_call(x, Quantized(weight, scales, zeros)))


def _call(x: jax.Array, weight: Quantized) -> tuple[row_matmul.Operands, row_matmul.Around]:
    """The arguments of row_matmul's implementations."""
    operands = row_matmul.Operands(x, (weight,), (None,), None, None)
    return operands, row_matmul.Around(None, 0.0, jnp.dtype(jnp.float32))


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
    call = _call(x, Quantized(weight, scales, zeros))
    return row_matmul.pallas(*call, interpret=interpret)[0]


@OP.register("dynamic", "cpu")
def dynamic(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """int8 by int8 products: each row of x is rounded to 255 levels of its largest number.

    A number far larger than the rest of its row costs the rest most of these levels, so weights are
    to be kept rotated and x given so (rtpjax.models.weight_formats): docs/benchmarks.md has what
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
    sums = lax.dot_general(levels, weight, CONTRACT_LAST, preferred_element_type=jnp.int32)
    return (sums.astype(jnp.float32) * steps * scales.T)[:T]


@OP.register("xla", "cpu", "gpu")
def xla(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """A product with the weights converted to x's format."""
    return product(x, Quantized(weight, scales, zeros))


@OP.register("reference", "cpu", "gpu")
def reference(
    x: jax.Array, weight: jax.Array, scales: jax.Array, zeros: jax.Array | None = None
) -> jax.Array:
    """The plain twin: everything in float32."""
    values = dequantized(Quantized(weight, scales, zeros))
    return jnp.einsum("ti,oi->to", x.astype(jnp.float32), values)
