"""What a model's forward pass receives besides token ids: the ragged batch and the caches.

A step packs rows (sequences) one after another along T, each with its own number of query tokens:

    token      0   1   2   3   4   5   6          query_start  = [0, 4, 5, 7]
    row       [---- 0 ----][ 1 ][- 2 -]           context_lens = context after this step, by row
    position   4   5   6   7   9   0   1

Row b attends to the pages in page_table[b]; its last query token stands at position context_lens[b]
- 1.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.sharded import MeshAxes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The ragged batch of one step.

    Attributes:
        positions: int32 `[T]`, position of each token in its sequence.
        slots: int32 `[T]`, where each token's key and value go: page * page_size + offset. Padding
            tokens point into page 0, which no sequence owns.
        page_table: int32 `[B, max_pages]`, pages of each row in order; unused entries are 0.
        query_start: int32 `[B + 1]`, row b's query tokens are query_start[b]:query_start[b + 1].
        context_lens: int32 `[B]`, tokens of context including this step's; 0 for padding rows.
        kind: "decode" (T == B, one query token per row) or "extend" (any number per row).
        mesh: Devices that the model is split over; None for one device.
    """

    positions: jax.Array
    slots: jax.Array
    page_table: jax.Array
    query_start: jax.Array
    context_lens: jax.Array
    kind: Literal["decode", "extend"] = dataclasses.field(metadata={"static": True})
    mesh: MeshAxes | None = dataclasses.field(default=None, metadata={"static": True})

    def from_page(self, first_page: int, page_size: int) -> StepInputs:
        """The same batch for a layer whose page 0 is first_page of its cache.

        Padding tokens stay in page 0 of the cache: that is how what writes knows them.
        """
        is_padding = self.slots < page_size
        slots = jnp.where(is_padding, self.slots, self.slots + first_page * page_size)
        return dataclasses.replace(self, slots=slots, page_table=self.page_table + first_page)


@dataclasses.dataclass(frozen=True)
class CacheSpec:
    """What one layer keeps for each token of context.

    Attributes:
        kind: "attention" (a key and a value per token). Other kinds join here.
        num_kv_heads: K.
        head_dim: H.
        window: Tokens of context the layer attends to, None for all.
    """

    num_kv_heads: int
    head_dim: int
    window: int | None = None
    kind: Literal["attention"] = "attention"


class PagedCache(NamedTuple):
    """The paged cache of n layers that follow one another: page p of the i-th is page i * P + p.

    They share arrays because each array that a program updates costs the host time in each step,
    and for each device.

    Attributes:
        k_pages: Keys `[n * P, page_size, K, H]`.
        v_pages: Values, likewise.
        k_scales: float32 `[n * P, K]`, what multiplies the numbers of a page and kv head; None if
            the cache is not quantized.
        v_scales: Likewise.
    """

    k_pages: jax.Array
    v_pages: jax.Array
    k_scales: jax.Array | None = None
    v_scales: jax.Array | None = None
