"""Kernels over a mesh: every device does its own heads or experts.

XLA cannot split a Pallas kernel by itself; without shard_map it would gather the whole cache.

device        0              1          ...        attention: heads N and kv heads K are split in
q          [T, N / n, H] [T, N / n, H]             an order that keeps a kv head and its group
k, v pages [.., K / m, H] [.., K / m, H]           together; m < n where devices share a kv head;
                                                   page tables and lengths are on every device
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.paged_attention import paged_attention


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """A mesh, and the names of its axes that things are split over; they are copied over others.

    Attributes:
        mesh: Devices.
        heads: For query heads; begins with kv_heads.
        kv_heads: For key/value heads.
        experts: For experts.
        expert_mlp: For the features inside an expert.
    """

    mesh: Mesh
    heads: tuple[str, ...]
    kv_heads: tuple[str, ...]
    experts: tuple[str, ...] = ()
    expert_mlp: tuple[str, ...] = ()

    def ways(self, axes: tuple[str, ...]) -> int:
        """Parts that something over these axes is cut into."""
        parts = 1
        for name in axes:
            parts *= self.mesh.shape[name]
        return parts

    def map(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any
    ) -> Callable[..., Any]:
        """shard_map over all axes that are not mapped yet, also inside of another shard_map."""
        context = jax.sharding.get_abstract_mesh()
        return jax.shard_map(
            function,
            mesh=self.mesh if context.empty else None,
            axis_names=set(self.mesh.axis_names) - set(context.manual_axes),
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,  # pallas_call does not say over which axes its result varies
        )


def sharded_paged_attention(
    axes: MeshAxes,
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
    attention: Callable[..., jax.Array] = paged_attention,
    **options: object,
) -> jax.Array:
    """`paged_attention` with heads split over a mesh.

    Args:
        axes: The mesh. With one device the op is called as it is.
        q: This and the other arrays are paged_attention's, whole.
        k_pages: See there.
        v_pages: See there.
        page_table: See there.
        query_start: See there.
        context_lens: See there.
        sinks: See there.
        k_scales: See there.
        v_scales: See there.
        attention: What computes a device's part; takes paged_attention's arguments.
        **options: Other arguments of paged_attention.

    Returns:
        `[T, N, H]`, heads split.

    Raises:
        ValueError: The axes do not divide the heads.
    """
    named = {"sinks": sinks, "k_scales": k_scales, "v_scales": v_scales}
    arrays = (q, k_pages, v_pages, page_table, query_start, context_lens)
    if axes.mesh.size == 1:
        return attention(*arrays, **named, **options)
    for what, count, names in (
        ("heads", q.shape[1], axes.heads),
        ("kv heads", k_pages.shape[2], axes.kv_heads),
    ):
        if count % axes.ways(names):
            raise ValueError(
                f"paged_attention: {count} {what} cannot be split over the {axes.ways(names)} "
                f"devices of mesh axes {names}; use a number of devices that divides them."
            )
    pages = P(None, None, axes.kv_heads, None)
    scales = P(None, axes.kv_heads)
    named_specs = {"sinks": P(axes.heads), "k_scales": scales, "v_scales": scales}
    heads = P(None, axes.heads, None)

    def local(arrays: tuple[jax.Array, ...], named: dict[str, jax.Array | None]) -> jax.Array:
        return partial(attention, **options)(*arrays, **named)

    return axes.map(local, ((heads, pages, pages, P(), P(), P()), named_specs), heads)(
        arrays, named
    )
