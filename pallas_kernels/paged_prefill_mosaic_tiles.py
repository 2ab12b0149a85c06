"""Where the tiles of `paged_prefill_mosaic` are: plain functions, for the kernel and its tests.

Queries are laid out anew, so that every tile is BLOCK_M whole rows of a product and belongs to one
row of the batch; the kernel then needs no masks to read or write them.

    rows       │ 0 │     1     │2│    BLOCK_Q = 4; a row's tiles start at query_start // 4 + row
    tokens     │0 1│2 3 4 5 6 7│8│
    tiles      │0 1 . .│2 3 4 5│6 7 . .│. . . .│8 . . .│       one kv head's part of q in tiles:
    steps          row 1: context tiles of BLOCK_S tokens       [BLOCK_Q x G, padded to BLOCK_M, H]

             │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │    of which the kernel visits those from the window of the
                   └─┬─┘   │   └─┬─┘      first token to the last token. In the middle ones every
                  masked  all  masked     token sees every other: nothing is masked there.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.paged_tiles import Operands

WARPGROUP_M = 64  # rows of a warpgroup's product
NUM_COMPUTE = 2  # warpgroups that compute
BLOCK_M = NUM_COMPUTE * WARPGROUP_M
BLOCK_S = 128


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        group: Query heads per kv head (G).
        page_size: Tokens of a page.
        table_width: Pages of a row of the page table.
        num_stages: Context tiles in flight.
    """

    group: int
    page_size: int
    table_width: int
    num_stages: int

    @staticmethod
    def of(operands: Operands) -> Tiling:
        """As many context tiles in flight as fit into 128 KiB beside the queries."""
        return Tiling(
            operands.group,
            operands.k_pages.shape[1],
            operands.page_table.shape[1],
            num_stages=256 // operands.q.shape[2],
        )

    @property
    def block_q(self) -> int:
        """Query tokens of a tile."""
        return BLOCK_M // self.group

    @property
    def copy_len(self) -> int:
        """Consecutive tokens of a page that one copy brings."""
        return min(self.page_size, BLOCK_S)

    @property
    def num_copies(self) -> int:
        """Copies that bring the keys, or the values, of a step."""
        return BLOCK_S // self.copy_len

    def place(self, step: jax.Array, copy: int) -> tuple[jax.Array, jax.Array]:
        """Column of the page table and first slot in the page that a step's copy reads.

        A step may reach past the table: it reads a page that is there, and all of it is masked.
        """
        token = step * BLOCK_S + copy * self.copy_len
        column = jnp.minimum(lax.div(token, jnp.int32(self.page_size)), self.table_width - 1)
        return column, lax.rem(token, jnp.int32(self.page_size))


class Tiles(NamedTuple):
    """Scalars of each tile, int32 `[num_tiles]`; a tile without tokens has no steps.

    Attributes:
        row: Of the batch.
        first_token: Of all tokens, the tile's first one.
        first_position: Its place in the row's context.
        oldest: First token of context that a token of the tile sees.
        end: Behind the last one.
        first_step: Steps are context tiles of BLOCK_S tokens.
        first_full: From this step on every token sees all of a step's context,
        end_full: up to here.
        end_step: Behind the last step.
    """

    row: jax.Array
    first_token: jax.Array
    first_position: jax.Array
    oldest: jax.Array
    end: jax.Array
    first_step: jax.Array
    first_full: jax.Array
    end_full: jax.Array
    end_step: jax.Array


def _first_tiles(query_start: jax.Array, block_q: int) -> jax.Array:
    """int32 `[B]`, the number of each row's first tile."""
    rows = jnp.arange(query_start.shape[0] - 1, dtype=jnp.int32)
    return query_start[:-1] // block_q + rows


def tiles_of(
    query_start: jax.Array,
    context_lens: jax.Array,
    num_tokens: int,
    block_q: int,
    window: int | None,
) -> Tiles:
    """The tiles of a batch: num_tokens // block_q + B of them, some without tokens."""
    B = context_lens.shape[0]
    starts = _first_tiles(query_start, block_q)
    tile = jnp.arange(num_tokens // block_q + B, dtype=jnp.int32)
    row = jnp.searchsorted(starts, tile, side="right").astype(jnp.int32) - 1
    in_row = (tile - starts[row]) * block_q
    query_len = query_start[row + 1] - query_start[row]
    first_position = context_lens[row] - query_len + in_row
    end = first_position + jnp.clip(query_len - in_row, 0, block_q)
    oldest = last_oldest = jnp.zeros_like(end)
    if window is not None:
        oldest = jnp.maximum(first_position - (window - 1), 0)
        last_oldest = jnp.maximum(end - window, 0)
    first_step, end_step = oldest // BLOCK_S, -(-end // BLOCK_S)
    end_step = jnp.where(in_row < query_len, end_step, first_step)
    first_full = jnp.clip(-(-last_oldest // BLOCK_S), first_step, end_step)
    end_full = jnp.clip((first_position + 1) // BLOCK_S, first_full, end_step)
    first_token = query_start[row] + in_row
    return Tiles(
        row,
        first_token,
        first_position,
        oldest,
        end,
        first_step,
        first_full,
        end_full,
        end_step,
    )


def in_tiles(q: jax.Array, tiles: Tiles, tiling: Tiling) -> jax.Array:
    """q `[T, N, H]` laid out by tile: `[K, num_tiles * BLOCK_M, H]`.

    What stands at places of no token is another token's query, or 0.
    """
    T, N, H = q.shape
    token = tiles.first_token[:, None] + jnp.arange(tiling.block_q)[None, :]
    grouped = q.reshape(T, N // tiling.group, tiling.group, H)[jnp.minimum(token, T - 1)]
    rows = grouped.transpose(2, 0, 1, 3, 4)  # [K, num_tiles, block_q, G, H]
    rows = rows.reshape(*rows.shape[:2], -1, H)
    padded = jnp.pad(rows, ((0, 0), (0, 0), (0, BLOCK_M - rows.shape[2]), (0, 0)))
    return padded.reshape(padded.shape[0], -1, H)


def by_token(x: jax.Array, query_start: jax.Array, num_tokens: int, tiling: Tiling) -> jax.Array:
    """x `[K, num_tiles * BLOCK_M, ...]` back in the order of tokens: `[T, N, ...]`."""
    K, G, block_q = x.shape[0], tiling.group, tiling.block_q
    token = jnp.arange(num_tokens, dtype=jnp.int32)
    row = jnp.searchsorted(query_start[1:], token, side="right").astype(jnp.int32)
    row = jnp.minimum(row, query_start.shape[0] - 2)  # tokens of no row: any place will do
    in_row = token - query_start[row]
    tile = _first_tiles(query_start, block_q)[row] + in_row // block_q
    tiles = x.reshape(K, -1, BLOCK_M, *x.shape[2:])[:, :, : block_q * G]
    tiles = tiles.reshape(K, tiles.shape[1], block_q, G, *x.shape[2:])
    rows = tiles[:, jnp.minimum(tile, tiles.shape[1] - 1), in_row % block_q]
    return jnp.moveaxis(rows, 0, 1).reshape(num_tokens, K * G, *x.shape[2:])


def is_seen(
    positions: jax.Array, tokens: jax.Array, end: jax.Array, window: int | None
) -> jax.Array:
    """Whether queries at positions see tokens of a context that ends behind token end - 1."""
    seen = (tokens <= positions) & (tokens < end)
    return seen if window is None else seen & (tokens > positions - window)
