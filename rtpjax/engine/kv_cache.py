"""The device arrays of the paged cache, and how many pages a memory budget holds."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike

from rtpjax import sharding
from rtpjax.models import CacheSpec, LayerCache


def page_bytes(specs: Iterable[CacheSpec], page_size: int, dtype: DTypeLike) -> int:
    """Bytes that one page takes over all layers, keys and values, on all devices together."""
    values = sum(2 * page_size * spec.num_kv_heads * spec.head_dim for spec in specs)
    return values * jnp.dtype(dtype).itemsize


def num_pages(budget_bytes: int, bytes_per_page: int) -> int:
    """Pages within a budget; page 0, which padding uses, is one of them."""
    return budget_bytes // bytes_per_page


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that a context of so many tokens takes."""
    return math.ceil(num_tokens / page_size)


def allocate(
    specs: Iterable[CacheSpec], pages: int, page_size: int, dtype: DTypeLike, mesh: Mesh
) -> tuple[LayerCache, ...]:
    """Zeroed caches of the layers, keys and values `[pages, page_size, K, H]`, kv heads sharded."""

    def zeros(shape: tuple[int, ...]) -> jax.Array:
        where: NamedSharding = sharding.named_sharding(mesh, sharding.CACHE_AXES, shape)
        return jnp.zeros(shape, dtype, device=where)

    return tuple(
        LayerCache(*(zeros((pages, page_size, s.num_kv_heads, s.head_dim)) for _ in range(2)))
        for s in specs
    )
