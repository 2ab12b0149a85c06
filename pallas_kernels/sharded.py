"""Attention and products over a mesh: XLA cannot split a Pallas kernel by itself.

Attention: every device does its own heads, and no device talks to another.

device        0              1          ...        heads N and kv heads K are split alike, so a
q          [T, N / tp, H] [T, N / tp, H]           kv head and its group stay together; page
k, v pages [.., K / tp, H] [.., K / tp, H]         tables and lengths are on every device

Products: weights are split over their outputs, and so is the result (q, k, v, gate, up); or over
their inputs, as x is, and the devices add up their results (o_proj, down_proj): one all-reduce.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.registry import current_target
from pallas_kernels.rotate import normed_rotate
from pallas_kernels.row_matmul import MAX_ROWS, Biases, Weights, row_matmul


def sharded_paged_attention(
    mesh: Mesh,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    axis: str = "tp",
    attention: Callable[..., jax.Array] = paged_attention,
    **options: object,
) -> jax.Array:
    """`paged_attention` with heads split over an axis of a mesh.

    XLA does not know how to split a Pallas kernel: without this it would gather the whole cache.

    Args:
        mesh: Its axis must divide the kv heads. With one device the op is called as it is.
        q: This and the other arrays are paged_attention's, whole.
        k_pages: See there.
        v_pages: See there.
        page_table: See there.
        query_start: See there.
        context_lens: See there.
        sinks: See there.
        k_scales: See there.
        v_scales: See there.
        axis: Name of the mesh axis.
        attention: What computes a device's part; takes paged_attention's arguments.
        **options: Other arguments of paged_attention.

    Returns:
        `[T, N, H]`, heads split over the axis.

    Raises:
        ValueError: The axis does not divide the kv heads.
    """
    named = {"sinks": sinks, "k_scales": k_scales, "v_scales": v_scales}
    arrays = (q, k_pages, v_pages, page_table, query_start, context_lens)
    if mesh.size == 1:
        return attention(*arrays, **named, **options)
    num_kv_heads = k_pages.shape[2]
    if num_kv_heads % mesh.shape[axis]:
        raise ValueError(
            f"paged_attention: {num_kv_heads} kv heads cannot be split over the {mesh.shape[axis]} "
            f"devices of mesh axis {axis}; use a number of devices that divides them."
        )
    pages = P(None, None, axis, None)
    named_specs = {"sinks": P(axis), "k_scales": P(None, axis), "v_scales": P(None, axis)}

    def local(arrays: tuple[jax.Array, ...], named: dict[str, jax.Array | None]) -> jax.Array:
        return partial(attention, **options)(*arrays, **named)

    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=((P(None, axis, None), pages, pages, P(), P(), P()), named_specs),
        out_specs=P(None, axis, None),
        check_vma=False,  # pallas_call does not say over which axes its result varies
    )(arrays, named)


def sharded_row_matmul(
    mesh: Mesh | None,
    specs: Sequence[P],
    x: jax.Array,
    weights: Weights,
    biases: Biases,
    *,
    norm: jax.Array | None = None,
    residual: jax.Array | None = None,
    matmul: Callable[..., list[jax.Array]] | None = None,
    **options: Any,
) -> list[jax.Array]:
    """`row_matmul` with weights split over a mesh; any number of rows.

    XLA splits and computes the products where rows are many, the mesh does not divide the weights,
    or there is no GPU.

    Args:
        mesh: None for one device.
        specs: How each weight is split: over its outputs, or (a weight without norm) its inputs.
        x: `[T, in]`.
        weights: See row_matmul, whole.
        biases: See there.
        norm: See there.
        residual: See there.
        matmul: What computes a device's part, for tests.
        **options: Other arguments of row_matmul.

    Returns:
        `[T, out_j]` for each weight in x's format; split like the weights' outputs.
    """
    whole = partial(row_matmul if matmul is None else matmul, **options)
    is_few = x.shape[0] <= MAX_ROWS and (matmul is not None or current_target().platform == "gpu")
    if not is_few or not all(_divides(mesh, s, w) for s, w in zip(specs, weights, strict=True)):
        plain = partial(row_matmul, implementation="xla", **options)
        ys = plain(x, weights, biases, norm=norm, residual=residual)
        return ys if residual is None else [summed_once(ys[0])]
    if mesh is None or mesh.size == 1:
        return whole(x, weights, biases, norm=norm, residual=residual)
    sharded = partial(jax.shard_map, mesh=mesh, check_vma=False)  # as above
    over_inputs = specs[0][1]
    if over_inputs is None:
        assert residual is None
        return sharded(
            lambda x, weights, biases, norm: list(whole(x, weights, biases, norm=norm)),
            in_specs=(P(), tuple(specs), tuple(P(s[0]) for s in specs), P()),
            out_specs=[P(None, s[0]) for s in specs[: 1 if options.get("gated") else None]],
        )(x, tuple(weights), tuple(biases), norm)
    assert norm is None and len(weights) == 1

    def add_up(x: jax.Array, weight: jax.Array) -> jax.Array:
        (part,) = whole(x, (weight,), (None,), out_dtype=jnp.float32)
        return lax.psum(part, over_inputs)

    both = P(None, over_inputs)
    y = sharded(add_up, in_specs=(both, both), out_specs=P())(x, weights[0])
    if biases[0] is not None:
        y = y + biases[0].astype(jnp.float32)[None, :]
    y = y if residual is None else y + residual.astype(jnp.float32)
    return [summed_once(y.astype(x.dtype))]


def summed_once(residual: jax.Array) -> jax.Array:
    """The residual stream, as it is.

    XLA for GPUs would rather add up all layers' results anew, in each layer more of them, than read
    their sum.
    """
    is_gpu = current_target().platform == "gpu"
    return lax.optimization_barrier(residual) if is_gpu else residual


def sharded_rotate(
    mesh: Mesh | None,
    heads: P,
    kv_heads: P,
    q: jax.Array,
    k: jax.Array,
    cos_sin: tuple[jax.Array, jax.Array],
    norms: tuple[jax.Array, jax.Array] | None,
    *,
    eps: float,
    rotation: Callable[..., list[jax.Array]] = normed_rotate,
) -> list[jax.Array]:
    """`normed_rotate` with heads split over a mesh.

    Args:
        mesh: None for one device.
        heads: How q is split.
        kv_heads: How k is split.
        q: See normed_rotate, whole; likewise the others.
        k: See there.
        cos_sin: cos and sin.
        norms: q_norm and k_norm, or None.
        eps: See there.
        rotation: What computes a device's part.
    """
    q_norm, k_norm = norms or (None, None)
    options = {"q_norm": q_norm, "k_norm": k_norm}
    if mesh is None or mesh.size == 1:
        return list(rotation(q, k, *cos_sin, **options, eps=eps))
    return jax.shard_map(
        lambda q, k, cos, sin, options: list(rotation(q, k, cos, sin, **options, eps=eps)),
        mesh=mesh,
        in_specs=(heads, kv_heads, P(), P(), P()),
        out_specs=[heads, kv_heads],
        check_vma=False,
    )(q, k, *cos_sin, options)


def _divides(mesh: Mesh | None, spec: P, weight: jax.Array) -> bool:
    """Whether a weight can be split so."""

    def ways(entry: Any) -> int:
        names = entry if isinstance(entry, tuple) else (entry,)
        return 1 if mesh is None else math.prod(mesh.shape[n] for n in names if n is not None)

    return all(size % ways(entry) == 0 for size, entry in zip(weight.shape, spec, strict=True))
