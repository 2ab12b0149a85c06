"""The device arrays of the paged cache, and how many pages a memory budget holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from rtpjax import sharding
from rtpjax.models import CacheSpec, LayerCache
from rtpjax.models.cache_write import has_scales, stored_as


def token_bytes(specs: Iterable[CacheSpec], dtype: DTypeLike) -> int:
    """Bytes of one token's keys and values over all layers, on all devices together."""
    return sum(2 * s.num_kv_heads * s.head_dim for s in specs) * jnp.dtype(dtype).itemsize


def page_bytes(specs: Iterable[CacheSpec], page_size: int, dtype: DTypeLike) -> int:
    """Bytes that one page takes over all layers, scales included, on all devices together."""
    specs = tuple(specs)
    num_scales = sum(2 * s.num_kv_heads for s in specs) if has_scales(dtype) else 0
    return page_size * token_bytes(specs, dtype) + num_scales * jnp.dtype(jnp.float32).itemsize


def num_pages(budget_bytes: int, bytes_per_page: int) -> int:
    """Pages within a budget; page 0, which padding uses, is one of them."""
    return budget_bytes // bytes_per_page


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that a context of so many tokens takes."""
    return math.ceil(num_tokens / page_size)


def declare(
    specs: Iterable[CacheSpec], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> tuple[LayerCache, ...]:
    """The layers' caches as shapes, kv heads sharded.

    Returns:
        For each layer jax.ShapeDtypeStruct in place of arrays: keys and values
        `[pages, page_size, K, H]`, and scales float32 `[pages, K]` where the format needs them.
    """

    stored = stored_as(dtype, mesh.devices.flat[0].platform)

    def array(axes: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        where = sharding.named_sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def layer(spec: CacheSpec) -> LayerCache:
        K, H = spec.num_kv_heads, spec.head_dim
        values = array(sharding.CACHE_AXES, (pages, page_size, K, H), stored)
        scales = array(sharding.CACHE_SCALE_AXES, (pages, K), jnp.float32)
        return LayerCache(values, values, *2 * (scales if has_scales(dtype) else None,))

    return tuple(layer(spec) for spec in specs)


def allocate(
    specs: Iterable[CacheSpec], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> tuple[LayerCache, ...]:
    """The layers' caches, as `declare` has them, filled with zeros."""
    declared = declare(specs, pages, page_size, dtype, mesh)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), declared)
