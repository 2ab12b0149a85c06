"""What a model's forward pass receives besides token ids and caches: the ragged batch.

A step packs rows (sequences) one after another along T, each with its own number of query tokens:

    token      0   1   2   3   4   5   6          query_start  = [0, 4, 5, 7]
    row       [---- 0 ----][ 1 ][- 2 -]           context_lens = context after this step, by row
    position   4   5   6   7   9   0   1

Row b attends to the pages in page_tables[g, b] of each cache group g (rtpjax.models.cache); its
last query token stands at position context_lens[b] - 1.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax

from pallas_kernels.sharded import MeshAxes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The ragged batch of one step.

    Attributes:
        positions: int32 `[T]`, position of each token in its sequence.
        slots: int32 `[G, T]`, where each token goes in each cache group: page * page_size + offset.
            Padding tokens point into page 0, which no sequence owns.
        page_tables: int32 `[G, B, max_pages]`, pages of each row in order; 0 where there is none,
            or none any more.
        query_start: int32 `[B + 1]`, row b's query tokens are query_start[b]:query_start[b + 1].
        context_lens: int32 `[B]`, tokens of context including this step's; 0 for padding rows.
        kind: "decode" (T == B, one query token per row) or "extend" (any number per row).
        mesh: Devices that the model is split over; None for one device.
    """

    positions: jax.Array
    slots: jax.Array
    page_tables: jax.Array
    query_start: jax.Array
    context_lens: jax.Array
    kind: Literal["decode", "extend"] = dataclasses.field(metadata={"static": True})
    mesh: MeshAxes | None = dataclasses.field(default=None, metadata={"static": True})
