"""The device arrays of the paged cache, and how many pages a memory budget holds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pallas_kernels.paged_tiles import is_addressable
from rtpjax import sharding
from rtpjax.models import CacheSpec, PagedCache
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
) -> tuple[PagedCache, ...]:
    """The caches of all layers as shapes, kv heads sharded.

    Args:
        specs: What each layer keeps.
        pages: P, of each layer.
        page_size: Tokens of a page.
        dtype: Format of the cache.
        mesh: Devices.

    Returns:
        jax.ShapeDtypeStruct in place of arrays. Neighbours that keep the same have one cache: two
        or four arrays for a whole model, as a rule.
    """

    stored = stored_as(dtype, mesh.devices.flat[0].platform)

    def array(axes: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        where = sharding.named_sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def cache(spec: CacheSpec, num_layers: int) -> PagedCache:
        K, H, total = spec.num_kv_heads, spec.head_dim, num_layers * pages
        values = array(sharding.CACHE_AXES, (total, page_size, K, H), stored)
        scales = array(sharding.CACHE_SCALE_AXES, (total, K), jnp.float32)
        return PagedCache(values, values, *2 * (scales if has_scales(dtype) else None,))

    caches: list[PagedCache] = []
    for _, alike in groupby(specs, lambda spec: (spec.num_kv_heads, spec.head_dim)):
        layers = list(alike)
        most = _layers_of_one_cache(len(layers), cache(layers[0], 1).k_pages)
        for at in range(0, len(layers), most):
            caches.append(cache(layers[0], len(layers[at : at + most])))
    return tuple(caches)


def _layers_of_one_cache(num_layers: int, one: Any) -> int:
    """How many of so many layers share arrays, of which `one` is a layer's part.

    All of them, but if the kernels could not address it: see size_check of pallas_kernels.
    """
    shard = jax.ShapeDtypeStruct(one.sharding.shard_shape(one.shape), one.dtype)
    for num_caches in range(1, num_layers):
        most = math.ceil(num_layers / num_caches)
        if is_addressable(most * shard.size, shard.dtype):
            return most
    return 1


def allocate(
    specs: Iterable[CacheSpec], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> tuple[PagedCache, ...]:
    """The caches, as `declare` has them, filled with zeros."""
    declared = declare(specs, pages, page_size, dtype, mesh)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), declared)
