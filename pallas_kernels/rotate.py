"""Rotary position embedding of queries and keys, with the norm per head that some models have.

    z = x, or x / rms(x) * norm            per head (Qwen3)
    y = [z1 * cos - z2 * sin, z2 * cos + z1 * sin, z3]      z1, z2 the halves of the rotated part

XLA makes two to four kernels of it, which each read what the one before wrote. Here it is one:

    heads       q 0 .. 7 │ q 8 .. 15 │ ... │ k 0 .. 7 │      grid (tokens T, tiles of 8 heads)
    a tile      z1 [8, half] │ z2 [8, half] │ z3 [8, rest]   half is padded to a power of two
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.paged_tiles import FLOAT_CACHES, Ref, power_of_two
from pallas_kernels.registry import Op, Target, refuse
from pallas_kernels.row_matmul import rms_norm

OP = Op("rotate")

_TILE_HEADS = 8


class Operands(NamedTuple):
    """Arrays of a call, or refs to them in the kernel; normed_rotate documents them."""

    q: Ref
    k: Ref
    cos: Ref
    sin: Ref
    q_norm: Ref | None
    k_norm: Ref | None


def normed_rotate(
    q: jax.Array,
    k: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    *,
    q_norm: jax.Array | None = None,
    k_norm: jax.Array | None = None,
    eps: float = 0.0,
    implementation: str | None = None,
) -> list[jax.Array]:
    """Normalizes the heads of q and k, if there are norms, and turns them by their token's angle.

    Args:
        q: `[T, N, H]`.
        k: `[T, K, H]`.
        cos: float32 `[T, rotary_dim // 2]`.
        sin: Like cos.
        q_norm: `[H]`, weight of an RMS norm of each query head; None for none.
        k_norm: Likewise for key heads.
        eps: Of the norms.
        implementation: A name from the registry, or None for the platform's default.

    Returns:
        q and k in their shapes and formats, computed in float32; features past rotary_dim are not
        turned.
    """
    operands = Operands(q, k, cos, sin, q_norm, k_norm)
    return OP(operands, eps=eps, implementation=implementation)  # type: ignore[return-value]


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns features (i, i + rotary_dim // 2) of each head by their token's angle, in float32.

    Args:
        x: `[T, heads, head_dim]`.
        cos: float32 `[T, rotary_dim // 2]`.
        sin: float32 `[T, rotary_dim // 2]`.

    Returns:
        `[T, heads, head_dim]` in x's dtype; features past rotary_dim as they were.
    """
    half = cos.shape[-1]
    first, second, rest = jnp.split(x, (half, 2 * half), axis=-1)
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    cos, sin = cos[:, None, :], sin[:, None, :]
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate((*(t.astype(x.dtype) for t in turned), rest), axis=-1)


def _supports(target: Target, operands: Operands, *, eps: float) -> None:
    del eps
    q, k = operands.q, operands.k
    formats = [jnp.dtype(d).name for d in FLOAT_CACHES]
    refuse(
        "xla",
        (
            target.compute_capability >= 80,
            f"compute capability {target.compute_capability}",
            "80 and later",
        ),
        (
            q.dtype == k.dtype and q.dtype.name in formats,
            f"q of {q.dtype} and k of {k.dtype}",
            f"one of {', '.join(formats)} for both",
        ),
        (q.shape[2] <= 512, f"head_dim {q.shape[2]}", "up to 512"),
    )


@OP.register("pallas", "gpu", supports=_supports)
def pallas(operands: Operands, *, eps: float, interpret: bool = False) -> list[jax.Array]:
    """The kernel; interpret runs it on the CPU, slowly: for tests."""
    q, k = operands.q, operands.k
    tiles = [pl.cdiv(x.shape[1], _TILE_HEADS) for x in (q, k)]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        partial(_kernel, eps=eps),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k)],
        grid=(q.shape[0], sum(tiles)),
        in_specs=[jax.tree.map(lambda _: anywhere, operands)],
        out_specs=[anywhere, anywhere],
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
        interpret=interpret,
        name="rotate",
    )
    return list(call(operands))


def _kernel(operands: Operands, q_out: Ref, k_out: Ref, *, eps: float) -> None:
    """One tile of heads of one token: of q, or of k."""
    token, tile = pl.program_id(0), pl.program_id(1)
    q_tiles = pl.cdiv(q_out.shape[1], _TILE_HEADS)

    def turn(source: Ref, norm: Ref | None, out: Ref, tile: jax.Array) -> None:
        _turn_tile((source, norm, operands.cos, operands.sin), out, (token, tile), eps)

    pl.when(tile < q_tiles)(partial(turn, operands.q, operands.q_norm, q_out, tile))
    pl.when(tile >= q_tiles)(partial(turn, operands.k, operands.k_norm, k_out, tile - q_tiles))


def _turn_tile(
    refs: tuple[Ref, Ref | None, Ref, Ref], out: Ref, where: tuple[jax.Array, jax.Array], eps: float
) -> None:
    source, norm, cos_ref, sin_ref = refs
    token, tile = where
    num_heads, head_dim = out.shape[1:]
    heads = tile * _TILE_HEADS + lax.iota(jnp.int32, _TILE_HEADS)[:, None]
    half = cos_ref.shape[1]
    # Two halves, and what is not turned.
    parts = [_Features(0, half), _Features(half, half), _Features(2 * half, head_dim - 2 * half)]
    parts = [part for part in parts if part.count]
    is_there = [part.is_there & (heads < num_heads) for part in parts]
    values = [
        _read(source.at[token, heads, part.at], mask)
        for part, mask in zip(parts, is_there, strict=True)
    ]
    if norm is not None:
        size = lax.rsqrt(sum((v * v).sum(axis=1) for v in values) / head_dim + eps)
        weights = [_read(norm.at[part.at], part.is_there) for part in parts]
        values = [v * size[:, None] * w for v, w in zip(values, weights, strict=True)]
    cos, sin = (_read(ref.at[token, parts[0].at], parts[0].is_there) for ref in (cos_ref, sin_ref))
    first, second, *rest = values
    turned = [first * cos - second * sin, second * cos + first * sin, *rest]
    for part, mask, value in zip(parts, is_there, turned, strict=True):
        plgpu.store(out.at[token, heads, part.at], value.astype(out.dtype), mask=mask)


class _Features:
    """Consecutive features of a head, `[1, count]` padded to a power of two."""

    def __init__(self, first: int, count: int):
        self.count = count
        columns = lax.broadcasted_iota(jnp.int32, (1, power_of_two(max(count, 1))), 1)
        self.at = first + columns
        self.is_there = columns < count


def _read(place: Ref, mask: jax.Array) -> jax.Array:
    return plgpu.load(place, mask=mask, other=0.0).astype(jnp.float32)


@OP.register("xla", "cpu", "gpu")
def xla(operands: Operands, *, eps: float) -> list[jax.Array]:
    """Norm and rotation as XLA fuses them, each rounded to the arrays' format."""
    q, k = operands.q, operands.k
    if operands.q_norm is not None:
        q = rms_norm(q, operands.q_norm, eps)
    if operands.k_norm is not None:
        k = rms_norm(k, operands.k_norm, eps)
    return [rotate(x, operands.cos, operands.sin) for x in (q, k)]


@OP.register("reference", "cpu", "gpu")
def reference(operands: Operands, *, eps: float) -> list[jax.Array]:
    """The plain twin: everything in float32."""
    wide = operands._replace(q=operands.q.astype(jnp.float32), k=operands.k.astype(jnp.float32))
    return [
        y.astype(x.dtype) for x, y in zip((operands.q, operands.k), xla(wide, eps=eps), strict=True)
    ]
