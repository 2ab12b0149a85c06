"""What layers keep of the context, and where in the shared arrays each layer's part is.

    cache_specs()    one spec a layer: what it keeps           Pages, Pages(window=512), ...
    CacheLayout      layers of equal lifetime are a group      with pages and page tables of its own
    Caches           the arrays of all groups; layer(i, step) is what layer i sees of them

Layers of a group that keep arrays of one shape share them: page p of the i-th of these layers is
page i * P + p, where P is the number of the group's pages. They share because each array that a
program updates costs the host time in each step, and for each device.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rtpjax.models.step import StepInputs


@dataclasses.dataclass(frozen=True)
class Pages:
    """A key and a value of each token: what an attention layer keeps.

    Attributes:
        num_kv_heads: K.
        key_dim: Features of a key's head.
        value_dim: Of a value's.
        window: Tokens of context that the layer attends to, None for all. Pages that no window
            reaches any more are given to others.
    """

    num_kv_heads: int
    key_dim: int
    value_dim: int
    window: int | None = None

    @property
    def token_size(self) -> int:
        """Numbers kept of a token."""
        return self.num_kv_heads * (self.key_dim + self.value_dim)


class PagedCache(NamedTuple):
    """The pages of n layers of one group.

    Attributes:
        k_pages: Keys `[n * P, page_size, K, key_dim]`.
        v_pages: Values `[n * P, page_size, K, value_dim]`.
        k_scales: float32 `[n * P, K]`, what multiplies the numbers of a page and kv head; None if
            the cache is not quantized.
        v_scales: Likewise.
    """

    k_pages: jax.Array
    v_pages: jax.Array
    k_scales: jax.Array | None = None
    v_scales: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerCache:
    """What one layer sees of the caches in a step.

    Attributes:
        pages: Arrays that have its pages.
        page_table: int32 `[B, max_pages]`, its pages of each row in these arrays.
        slots: int32 `[T]`, where its key and value of each token go: page * page_size + offset.
            Those of padding tokens are in page 0.
    """

    pages: PagedCache
    page_table: jax.Array
    slots: jax.Array


class Place(NamedTuple):
    """Where a layer's pages are.

    Attributes:
        group: Whose page table names them.
        array: Which PagedCache has them.
        part: Which of the layers there it is.
    """

    group: int
    array: int
    part: int


@dataclasses.dataclass(frozen=True)
class CacheLayout:
    """Where the pages of each layer are.

    Attributes:
        places: By layer.
        num_pages: P of each group, in a dp group.
    """

    places: tuple[Place, ...]
    num_pages: tuple[int, ...]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Caches:
    """The caches of all layers.

    Attributes:
        arrays: All there are; layers share them.
        layout: Which layer has what of them.
    """

    arrays: tuple[PagedCache, ...]
    layout: CacheLayout = dataclasses.field(metadata={"static": True})

    def layer(self, layer: int, step: StepInputs) -> LayerCache:
        """What a layer, from 0, sees in a step."""
        group, array, part = self.layout.places[layer]
        pages, first_page = self.arrays[array], part * self.layout.num_pages[group]
        page_size = pages.k_pages.shape[1]
        # Slots of padding stay in page 0 of the arrays: cache_write knows them by that.
        slots = step.slots[group]
        slots = jnp.where(slots < page_size, slots, slots + first_page * page_size)
        return LayerCache(pages, step.page_tables[group] + first_page, slots)

    def updated(self, layer: int, pages: PagedCache) -> Caches:
        """With the arrays that a layer has written to."""
        array = self.layout.places[layer].array
        arrays = (*self.arrays[:array], pages, *self.arrays[array + 1 :])
        return dataclasses.replace(self, arrays=arrays)
