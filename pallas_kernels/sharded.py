"""Attention over a mesh: every device does its own heads, and no device talks to another.

device        0              1          ...        heads N and kv heads K are split alike, so a
q          [T, N / tp, H] [T, N / tp, H]           kv head and its group stay together; page
k, v pages [.., K / tp, H] [.., K / tp, H]         tables and lengths are on every device
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.paged_attention import paged_attention


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
