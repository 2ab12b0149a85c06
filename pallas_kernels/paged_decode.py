"""Attention of one query token per row over the paged cache, for NVIDIA GPUs (Pallas on Triton).

A decode step is bound by memory: a program reads its share of a row's context once for all query
heads of a kv head, and where rows are few they are split over the context to fill the GPU.

    grid (rows B, kv heads K, splits)              tiles of BLOCK_S tokens of row b:

        q [G, H], padded to 16 rows ─┐             │ 0 │ 1 │ 2 │ 3 │ 4 │ 5 │ 6 │ 7 │
        k tile [BLOCK_S, H] ─────────┼► scores     │ older │  split 0  │  split 1  │  2 is empty
        v tile [BLOCK_S, H] ─────────┴► sums         than
                                         │          window
          one split: the result ◄────────┤
          several, float32:              ▼
            sums [B, N, splits, H], log_totals [B, N, splits] ──► merge, grid (B, N) ──► the result

The group of G query heads is padded to 16, as the tensor cores would do. An empty split writes only
that it is empty, and its sums are not read.
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
    power_of_two,
)

MAX_SPLITS = 32
FULL_GPU = 256  # programs: about two for each multiprocessor; more write and read more partials


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        num_splits: Programs that share a row's context; a power of two.
        block_s: Tokens of context a program reads at once.
        num_warps: Of a program.
        num_stages: Steps of the loop that are under way at once; 3 have two tiles in shared memory.
    """

    num_splits: int
    block_s: int
    num_warps: int = 4
    num_stages: int = 3

    @staticmethod
    def of(operands: Operands) -> Tiling:
        """Splits until the GPU is full, but not below two tiles for a split."""
        rows, max_pages = operands.page_table.shape
        page_size, num_kv_heads = operands.k_pages.shape[1:3]
        block_s, num_stages = fitting(
            operands,
            max(16, power_of_two(operands.group)),
            min(64, max(16, 2**14 // operands.head_bytes)),
            # On an H100 a fourth stage makes a long row among short ones 1.2 times as fast, a fifth
            # slower again; rows of one length do not feel it (docs/lab).
            most_stages=4,
        )
        longest = -(-max_pages * page_size // (2 * block_s))
        wanted = FULL_GPU // (rows * num_kv_heads)
        splits = max(1, min(wanted, longest, MAX_SPLITS))
        # Converting a quantized tile takes registers, of which more warps have more.
        num_warps = 8 if operands.is_quantized else 4
        return Tiling(1 << (splits.bit_length() - 1), block_s, num_warps, num_stages)


def paged_decode(
    operands: Operands,
    scores: Scores,
    *,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Attention where row b's only query token is q[b]; query_start is not read.

    Args:
        operands: The arrays.
        scores: How products become scores.
        tiling: Sizes; chosen by shape if None.
        interpret: Runs on the CPU, slowly: for tests.

    Returns:
        `[B, N, H]` in q's dtype; 0 for rows without context.
    """
    tiling = tiling or Tiling.of(operands)
    B, N, H = operands.q.shape
    splits = tiling.num_splits
    result = jax.ShapeDtypeStruct((B, N, H), operands.q.dtype)
    partial_sums = jax.ShapeDtypeStruct((B, N, splits, H), jnp.float32)
    log_totals = jax.ShapeDtypeStruct((B, N, splits), jnp.float32)
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    out = pl.pallas_call(
        partial(_decode_kernel, scores=scores, tiling=tiling),
        out_shape=[result] if splits == 1 else [partial_sums, log_totals],
        grid=(B, operands.k_pages.shape[2], splits),
        in_specs=[jax.tree.map(lambda _: anywhere, operands)],
        out_specs=[anywhere] if splits == 1 else [anywhere, anywhere],
        compiler_params=plgpu.CompilerParams(
            num_warps=tiling.num_warps, num_stages=tiling.num_stages
        ),
        interpret=interpret,
        name="paged_decode",
    )(operands)
    if splits == 1:
        return out[0]
    return pl.pallas_call(
        _merge_kernel,
        out_shape=result,
        grid=(B, N),
        in_specs=[anywhere, anywhere],
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="paged_decode_merge",
    )(*out)


def _decode_kernel(
    operands: Operands,
    out_ref: Ref,
    log_total_ref: Ref | None = None,
    *,
    scores: Scores,
    tiling: Tiling,
) -> None:
    """One split of one row for the query heads of one kv head."""
    row, kv_head, split = (pl.program_id(axis) for axis in range(3))
    block_s, G = tiling.block_s, operands.group
    pages = TilePages.of(operands, row, block_s)
    context_len = operands.context_lens[row]
    oldest = jnp.int32(0)
    if scores.window is not None:
        oldest = jnp.maximum(context_len - scores.window, 0)
    first_tile = lax.div(oldest, block_s)
    end_tile = lax.div(context_len + (block_s - 1), block_s)
    num_tiles = end_tile - first_tile
    tiles_per_split = lax.div(num_tiles + (tiling.num_splits - 1), tiling.num_splits)
    first = first_tile + split * tiles_per_split
    end = jnp.minimum(first + tiles_per_split, end_tile)

    group = lax.iota(jnp.int32, max(16, power_of_two(G)))
    in_group = group < G
    heads = kv_head * G + group
    columns, in_head = operands.columns()
    own = in_group[:, None] & in_head

    def attend() -> Softmax:
        q = plgpu.load(operands.q.at[row, heads[:, None], columns], mask=own, other=0.0)
        q = q.astype(operands.compute_dtype)
        sink = None
        if operands.sinks is not None:
            sink = plgpu.load(operands.sinks.at[heads], mask=in_group, other=0.0)
            sink = jnp.where(split == 0, sink, MASKED)

        def add_tile(i: jax.Array, carried: tuple[Softmax, jax.Array]) -> tuple[Softmax, jax.Array]:
            state, ids = carried
            next_ids = pages.ids(i + 1)
            tokens = pages.tokens(i)
            is_live = (tokens >= oldest) & (tokens < context_len)
            tile = CacheTile.read(operands, kv_head, ids, pages.offsets(i), is_live)
            tile_scores = jnp.where(is_live[None, :], scores.of(tile.products(q)), MASKED)
            return state.add(tile_scores, tile.v, tile.v_scales), next_ids

        start = Softmax.start(sink, group.size, operands.block_h)
        return lax.fori_loop(first, end, add_tile, (start, pages.ids(first)))[0]

    if log_total_ref is None:
        result = attend().result().astype(out_ref.dtype)
        plgpu.store(out_ref.at[row, heads[:, None], columns], result, mask=own)
        return

    @pl.when(first < end)
    def _() -> None:
        state = attend()
        plgpu.store(out_ref.at[row, heads[:, None], split, columns], state.result(), mask=own)
        plgpu.store(log_total_ref.at[row, heads, split], state.log_total(), mask=in_group)

    @pl.when(first >= end)
    def _() -> None:
        nothing = jnp.full(group.shape, MASKED, jnp.float32)
        plgpu.store(log_total_ref.at[row, heads, split], nothing, mask=in_group)


def _merge_kernel(partial_ref: Ref, log_total_ref: Ref, out_ref: Ref) -> None:
    """One row and head: the splits' results, weighted by their shares of the softmax's sum."""
    row, head = pl.program_id(0), pl.program_id(1)
    splits, H = partial_ref.shape[2:]
    split = lax.iota(jnp.int32, splits)
    columns = lax.iota(jnp.int32, power_of_two(H))
    in_head = columns < H
    log_totals = log_total_ref[row, head, split]
    is_live = log_totals > MASKED
    weights = jnp.where(is_live, jnp.exp2(log_totals - log_totals.max(axis=0)), 0.0)
    partials = plgpu.load(
        partial_ref.at[row, head, split[:, None], columns[None, :]],
        mask=is_live[:, None] & in_head[None, :],
        other=0.0,
    )
    weighted = (partials * weights[:, None]).sum(axis=0)
    result = weighted / jnp.maximum(weights.sum(axis=0), 1e-30)
    plgpu.store(out_ref.at[row, head, columns], result.astype(out_ref.dtype), mask=in_head)
