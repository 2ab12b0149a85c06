"""The device arrays of the paged cache, and how many pages a memory budget holds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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


def windows_of(specs: Iterable[Pages]) -> tuple[int | None, ...]:
    """The window of each cache group: all layers of one window are a group, the widest first."""
    windows = {spec.window for spec in specs}
    return tuple(sorted(windows, key=lambda window: -math.inf if window is None else -window))


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


def declare(
    specs: Iterable[Pages], num_pages: Sequence[int], page_size: int, dtype: DTypeLike, mesh: Mesh
) -> Caches:
    """The caches of all layers as shapes, kv heads sharded.

    Args:
        specs: What each layer keeps.
        num_pages: P of each cache group (windows_of) in a dp group.
        page_size: Tokens of a page.
        dtype: Format of the cache.
        mesh: Devices.

    Returns:
        jax.ShapeDtypeStruct in place of arrays. Layers of a group that keep the same share arrays:
        two or four of them for a whole group, as a rule.
    """
    specs = tuple(specs)
    stored = stored_as(dtype, mesh.devices.flat[0].platform)
    windows = windows_of(specs)

    def array(axes: tuple[str, ...], shape: tuple[int, ...], dtype: DTypeLike) -> Any:
        where = sharding.named_sharding(mesh, axes, shape)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

    def cache(spec: Pages, num_layers: int) -> PagedCache:
        pages = num_pages[windows.index(spec.window)]
        K, total = spec.num_kv_heads, mesh.shape[sharding.DP] * num_layers * pages
        k_pages, v_pages = (
            array(sharding.CACHE_AXES, (total, page_size, K, size), stored)
            for size in (spec.key_dim, spec.value_dim)
        )
        scales = array(sharding.CACHE_SCALE_AXES, (total, K), jnp.float32)
        return PagedCache(k_pages, v_pages, *2 * (scales if has_scales(dtype) else None,))

    alike: dict[Pages, list[int]] = {}
    for layer, spec in enumerate(specs):
        alike.setdefault(spec, []).append(layer)
    arrays: list[PagedCache] = []
    places: dict[int, Place] = {}
    for spec, layers in alike.items():
        group = windows.index(spec.window)
        most = _layers_of_one_cache(len(layers), cache(spec, 1).k_pages)
        for at in range(0, len(layers), most):
            some = layers[at : at + most]
            places |= {layer: Place(group, len(arrays), i) for i, layer in enumerate(some)}
            arrays.append(cache(spec, len(some)))
    layout = CacheLayout(tuple(places[layer] for layer in range(len(specs))), tuple(num_pages))
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
    specs: Iterable[Pages], num_pages: Sequence[int], page_size: int, dtype: DTypeLike, mesh: Mesh
) -> Caches:
    """The caches, as `declare` has them, filled with zeros."""
    declared = declare(specs, num_pages, page_size, dtype, mesh)
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), declared)
