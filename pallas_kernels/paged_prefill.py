"""Attention of rows of any query length over the paged cache, for NVIDIA GPUs (Pallas on Triton).

One call does chunks of prompts with a cached prefix, rows that verify drafts, and decodes. A tile
is up to BLOCK_Q consecutive tokens of one row, times the G query heads of a kv head: BLOCK_M rows
of the products, BLOCK_Q = BLOCK_M // G.

    rows       │ 0 │     1     │2│    BLOCK_Q = 4. A row's tiles start at query_start // 4 + row,
    tokens     │0 1│2 3 4 5 6 7│8│    so that none is two rows': row 0 has 0, row 1 has 1 and 2,
    tiles      │ 0 │   1   │ 2 │4│    row 2 has 4. Tile 3 is empty: its program ends at once.

    grid (kv heads K, T // BLOCK_Q + B)

        q  [BLOCK_M, H] = tokens x heads ─► one program ◄─ k, v tiles [BLOCK_S, H] of its pages,
                                               │           from the window's start up to the
        out, the same places in [T, N, H]  ◄───┘           tile's last token (causal)
"""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.paged_tiles import (
    MASKED,
    CacheTile,
    Operands,
    Ref,
    Scores,
    Softmax,
    TilePages,
    fitting,
    has_few_registers,
    power_of_two,
)


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        block_m: Query tokens times heads of a tile.
        block_s: Tokens of context a program reads at once.
        num_warps: Of a program.
        num_stages: Steps of the loop that are under way at once; 3 have two tiles in shared memory.
    """

    block_m: int
    block_s: int
    num_warps: int = 8
    num_stages: int = 3

    @staticmethod
    def of(operands: Operands) -> Tiling:
        """The largest that compile without spilled registers.

        Caches of over 4 GiB, as GPUs serve them, are addressed with 64 bits, which takes some.
        """
        head_bytes, num_warps = operands.head_bytes, 8
        block_m, block_s = 128 if head_bytes <= 256 else 64, 32
        if operands.compute_dtype == jnp.float32:  # no tensor cores: a product fills registers
            block_m = max(32, power_of_two(operands.group))
            block_s = 32 if head_bytes <= 512 else 16
        elif has_few_registers() and operands.is_quantized:  # which converts tiles in registers
            block_m, num_warps = 64, 4 if head_bytes <= 128 else 8
        elif not has_few_registers() and head_bytes == 256:
            block_s = 64
        block_s, num_stages = fitting(operands, block_m, block_s)
        return Tiling(block_m, block_s, num_warps, num_stages)


def paged_prefill(
    operands: Operands,
    scores: Scores,
    *,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Causal attention of a ragged batch.

    Args:
        operands: The arrays.
        scores: How products become scores.
        tiling: Sizes; chosen by shape if None.
        interpret: Runs on the CPU, slowly: for tests.

    Returns:
        `[T, N, H]` in q's dtype; what stands at tokens of no row is unspecified.
    """
    tiling = tiling or Tiling.of(operands)
    T, B = operands.q.shape[0], operands.page_table.shape[0]
    block_q = tiling.block_m // operands.group
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    return pl.pallas_call(
        partial(_prefill_kernel, scores=scores, tiling=tiling),
        out_shape=jax.ShapeDtypeStruct(operands.q.shape, operands.q.dtype),
        grid=(operands.k_pages.shape[2], T // block_q + B),
        in_specs=[jax.tree.map(lambda _: anywhere, operands)],
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(
            num_warps=tiling.num_warps, num_stages=tiling.num_stages
        ),
        interpret=interpret,
        name="paged_prefill",
    )(operands)


def _row_of_tile(query_start: Ref, tile: jax.Array, block_q: int) -> tuple[jax.Array, jax.Array]:
    """The row that a tile belongs to, and the number of the row's first tile.

    Counts the rows that start at or before it: one load of all starts, where a binary search would
    wait for as many loads as it has steps.
    """
    B = query_start.shape[0] - 1
    rows = lax.iota(jnp.int32, power_of_two(B))
    starts = plgpu.load(query_start.at[rows], mask=rows < B, other=0)
    first_tiles = lax.div(starts, block_q) + rows
    row = ((rows < B) & (first_tiles <= tile)).astype(jnp.int32).sum(axis=0) - 1
    return row, lax.div(query_start[row], block_q) + row


def _prefill_kernel(operands: Operands, out_ref: Ref, *, scores: Scores, tiling: Tiling) -> None:
    """One tile of query tokens for the query heads of one kv head."""
    kv_head, tile = pl.program_id(0), pl.program_id(1)
    G, block_s = operands.group, tiling.block_s
    block_q = tiling.block_m // G
    row, first_tile = _row_of_tile(operands.query_start, tile, block_q)
    row_start = operands.query_start[row]
    query_len = operands.query_start[row + 1] - row_start
    first_token = (tile - first_tile) * block_q

    @pl.when(first_token < query_len)
    def _() -> None:
        m = lax.iota(jnp.int32, tiling.block_m)
        token = first_token + lax.div(m, G)
        heads = kv_head * G + lax.rem(m, G)
        is_query = (m < block_q * G) & (token < query_len)
        columns, in_head = operands.columns()
        places = (row_start + token)[:, None], heads[:, None], columns
        own = is_query[:, None] & in_head
        q = plgpu.load(operands.q.at[places], mask=own, other=0.0).astype(operands.compute_dtype)
        sink = None
        if operands.sinks is not None:
            sink = plgpu.load(operands.sinks.at[heads], mask=is_query, other=0.0)

        context_len = operands.context_lens[row]
        first_position = context_len - query_len + first_token
        positions = context_len - query_len + token
        end = jnp.minimum(context_len, first_position + block_q)
        oldest = jnp.int32(0)
        if scores.window is not None:
            oldest = jnp.maximum(first_position - (scores.window - 1), 0)

        pages = TilePages.of(operands, row, block_s)

        def add_tile(i: jax.Array, carried: tuple[Softmax, jax.Array]) -> tuple[Softmax, jax.Array]:
            state, ids = carried
            next_ids = pages.ids(i + 1)
            tokens = pages.tokens(i)
            is_live = (tokens >= oldest) & (tokens < end)
            tile = CacheTile.read(operands, kv_head, ids, pages.offsets(i), is_live)
            seen = is_live[None, :] & (tokens[None, :] <= positions[:, None])
            if scores.window is not None:
                seen &= tokens[None, :] > positions[:, None] - scores.window
            tile_scores = jnp.where(seen, scores.of(tile.products(q)), MASKED)
            return state.add(tile_scores, tile.v, tile.v_scales), next_ids

        start = Softmax.start(sink, tiling.block_m, operands.block_h)
        first = lax.div(oldest, block_s)
        num_tiles = lax.div(end + (block_s - 1), block_s)
        state, _ = lax.fori_loop(first, num_tiles, add_tile, (start, pages.ids(first)))
        plgpu.store(out_ref.at[places], state.result().astype(out_ref.dtype), mask=own)
