"""The device arrays of the paged cache, and how many pages a memory budget holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from pallas_kernels.paged_tiles import is_addressable
from rtpjax import sharding
from rtpjax.models import Caches, PagedCache, Pages
from rtpjax.models.cache import CacheLayout, Place
from rtpjax.models.cache_write import has_scales, stored_as


def token_bytes(specs: Iterable[Pages], dtype: DTypeLike) -> int:
    """Bytes of one token's keys and values over all layers, on all devices together."""
    return sum(spec.token_size for spec in specs) * jnp.dtype(dtype).itemsize


def page_bytes(specs: Iterable[Pages], page_size: int, dtype: DTypeLike) -> int:
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
    specs: Iterable[Pages], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> Caches:
    """The caches of all layers as shapes, kv heads sharded.

    Args:
        specs: What each layer keeps.
        pages: P, of each layer in each dp group.
        page_size: Tokens of a page.
        dtype: Format of the cache.
        mesh: Devices.

    Returns:
        jax.ShapeDtypeStruct in place of arrays. Layers that keep the same share arrays: two or four
        of them for a whole model, as a rule.
    """
    specs = tuple(specs)
    stored = stored_as(dtype, mesh.devices.flat[0].platform)
    all_pages = mesh.shape[sharding.DP] * pages

    def array(axes: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        where = sharding.named_sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def cache(spec: Pages, num_layers: int) -> PagedCache:
        K, total = spec.num_kv_heads, num_layers * all_pages
        k_pages, v_pages = (
            array(sharding.CACHE_AXES, (total, page_size, K, size), stored)
            for size in (spec.key_dim, spec.value_dim)
        )
        scales = array(sharding.CACHE_SCALE_AXES, (total, K), jnp.float32)
        return PagedCache(k_pages, v_pages, *2 * (scales if has_scales(dtype) else None,))

    alike: dict[Pages, list[int]] = {}
    for layer, spec in enumerate(specs):
        alike.setdefault(dataclasses.replace(spec, window=None), []).append(layer)
    arrays: list[PagedCache] = []
    places: dict[int, Place] = {}
    for spec, layers in alike.items():
        most = _layers_of_one_cache(len(layers), cache(spec, 1).k_pages)
        for at in range(0, len(layers), most):
            some = layers[at : at + most]
            places |= {layer: Place(0, len(arrays), i) for i, layer in enumerate(some)}
            arrays.append(cache(spec, len(some)))
    layout = CacheLayout(tuple(places[layer] for layer in range(len(specs))), (pages,))
    return Caches(tuple(arrays), layout)


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
    specs: Iterable[Pages], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> Caches:
    """The caches, as `declare` has them, filled with zeros."""
    declared = declare(specs, pages, page_size, dtype, mesh)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), declared)
