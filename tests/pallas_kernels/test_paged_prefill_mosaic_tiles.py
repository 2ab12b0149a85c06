"""Tiles, steps and pages of the Hopper kernel against loops over tokens."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.paged_prefill_mosaic_tiles import (
    BLOCK_M,
    BLOCK_S,
    Tiling,
    by_token,
    in_tiles,
    is_seen,
    tiles_of,
)
from tests.examples import num_examples

NUM_TOKENS, NUM_ROWS = 40, 5
tiles_of = jax.jit(tiles_of, static_argnums=(2, 3, 4))
in_tiles = jax.jit(in_tiles, static_argnums=2)
by_token = jax.jit(by_token, static_argnums=(2, 3))
ROWS = st.lists(
    st.tuples(st.integers(0, 20), st.integers(0, 500)), min_size=NUM_ROWS, max_size=NUM_ROWS
).filter(lambda rows: sum(query for query, _ in rows) <= NUM_TOKENS)


def batch(rows):
    lens = [query for query, _ in rows]
    starts = np.cumsum([0, *lens]).astype(np.int32)
    contexts = np.asarray([query + prefix if query else 0 for query, prefix in rows], np.int32)
    return starts, contexts, lens


def tiles_by_row(rows, tiling, window):
    """Numbers of the tiles that have tokens, and all tiles as numpy."""
    starts, contexts, _ = batch(rows)
    tiles = tiles_of(starts, contexts, NUM_TOKENS, tiling.block_q, window)
    arrays = type(tiles)(*map(np.asarray, tiles))
    return [i for i in range(arrays.row.size) if arrays.first_step[i] < arrays.end_step[i]], arrays


@settings(max_examples=num_examples(40))
@given(rows=ROWS, group=st.sampled_from([3, 16, 64]))
def test_every_token_is_in_one_tile_and_comes_back(rows, group):
    tiling = Tiling(group, 16, 40, 2)
    starts, contexts, lens = batch(rows)
    q = np.arange(1, NUM_TOKENS * 2 * group * 2 + 1, dtype=np.float32)
    q = q.reshape(NUM_TOKENS, 2 * group, 2)
    tiles = tiles_of(starts, contexts, NUM_TOKENS, tiling.block_q, None)
    laid_out = np.asarray(in_tiles(q, tiles, tiling))
    assert laid_out.shape == (2, (NUM_TOKENS // tiling.block_q + NUM_ROWS) * BLOCK_M, 2)
    back = by_token(laid_out, starts, NUM_TOKENS, tiling)
    np.testing.assert_array_equal(back[: sum(lens)], q[: sum(lens)])
    used, arrays = tiles_by_row(rows, tiling, None)
    tokens = []
    for i in used:
        row, first = arrays.row[i], arrays.first_token[i]
        tokens += range(first, min(first + tiling.block_q, starts[row + 1]))
        position = contexts[row] - starts[row + 1] + first
        assert arrays.first_position[i] == position
        # The places of the tile in q: token by token, then the heads of the group.
        for m in (0, group - 1):
            np.testing.assert_array_equal(laid_out[1, i * BLOCK_M + m], q[first, group + m])
    assert tokens == list(range(sum(lens)))


@settings(max_examples=num_examples(60))
@given(rows=ROWS, window=st.sampled_from([None, 1, 60, 128, 300]))
def test_steps_are_what_the_tokens_of_a_tile_see(rows, window):
    tiling = Tiling(16, 16, 40, 2)
    starts, _, _ = batch(rows)
    used, tiles = tiles_by_row(rows, tiling, window)
    for i in used:
        count = min(tiling.block_q, starts[tiles.row[i] + 1] - tiles.first_token[i])
        positions = tiles.first_position[i] + np.arange(count)
        every = np.arange(-(-int(positions[-1] + 1) // BLOCK_S) * BLOCK_S)
        seen = (every[None] <= positions[:, None]) & (
            every[None] > positions[:, None] - (window or 10**6)
        )
        got = is_seen(positions[:, None], every[None], tiles.end[i], window)
        np.testing.assert_array_equal(got, seen)
        any_seen = np.flatnonzero(seen.any(0))
        assert (tiles.oldest[i], tiles.end[i]) == (any_seen[0], any_seen[-1] + 1)
        steps = seen.reshape(count, -1, BLOCK_S)
        visited = np.flatnonzero(steps.any((0, 2)))
        assert (tiles.first_step[i], tiles.end_step[i]) == (visited[0], visited[-1] + 1)
        full = set(range(tiles.first_full[i], tiles.end_full[i]))
        assert full == set(np.flatnonzero(steps.all((0, 2))))
        assert tiles.first_step[i] <= tiles.first_full[i] <= tiles.end_full[i] <= tiles.end_step[i]


def test_copies_bring_the_slots_of_a_step():
    for page_size in (8, 16, 128, 256):
        table_width = -(-3 * BLOCK_S // page_size)
        tiling = Tiling(4, page_size, table_width, 2)
        for step in range(3):
            slots = []
            for copy in range(tiling.num_copies):
                column, slot = tiling.place(jnp.int32(step), copy)
                slots += [(int(column), int(slot) + i) for i in range(tiling.copy_len)]
            want = [divmod(step * BLOCK_S + i, page_size) for i in range(BLOCK_S)]
            assert slots == want
        column, _ = tiling.place(jnp.int32(9), 0)
        assert column == table_width - 1
