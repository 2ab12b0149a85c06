"""The ragged prefill kernel in interpret mode against the plain twin."""

from __future__ import annotations

from functools import partial

import jax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.cases import (
    DISTINCT_SHAPES,
    WHOLE_SHAPES,
    case,
    mixed_lens,
    reduced,
    scores_of,
)
from pallas_kernels.paged_prefill import Tiling, paged_prefill
from pallas_kernels.paged_tiles import Scores
from pallas_kernels.registry import Target, tracing_for
from pallas_kernels.shapes import AttentionShape
from tests.examples import num_examples
from tests.pallas_kernels.shapes import assert_matches

FLOAT32 = AttentionShape("SmolLM2-135M float32", 9, 3, 64, cache_dtype="float32")
SMALL = AttentionShape("small", 6, 2, 16, has_sinks=True, cache_dtype="float32")


def check(shape, query_lens, context_lens, *, tiling=None, scores=None, **options):
    operands = case(shape, query_lens, context_lens, **options)
    scores = scores or scores_of(shape)
    got = paged_prefill(operands, scores, tiling=tiling, interpret=True)
    assert got.dtype == operands.q.dtype
    assert_matches(got, operands, scores)


@pytest.mark.parametrize("shape", DISTINCT_SHAPES, ids=lambda s: s.name)
def test_shapes_of_models(shape):
    """Decodes, a chunk after a cached prefix, a whole prompt, drafts, and an unused row."""
    check(reduced(shape), [1, 1, 9, 40, 3, 0], [17, 1, 80, 40, 33, 0], num_tokens=57)


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("shape", WHOLE_SHAPES, ids=lambda s: s.name)
def test_whole_shapes_of_models(shape, page_size):
    """Every shape in its own format and in float32: decodes, drafts, chunks, whole prompts."""
    check(shape, *mixed_lens(page_size), page_size=page_size, num_shared=2)


@pytest.mark.parametrize("num_drafts", [1, 4, 7])
def test_rows_that_verify_drafts_beside_decodes_and_a_long_chunk(num_drafts):
    """Each at the end of a page, of which the drafts' row shares the first ones with the chunk."""
    query_lens = [1, 1, 1 + num_drafts, 1 + num_drafts, 90, 2]
    contexts = [16, 33, 48, 1 + num_drafts, 138, 50]
    check(SMALL, query_lens, contexts, scores=Scores(0.2, None, None), num_shared=2)


@pytest.mark.parametrize("page_size", [1, 64])
def test_lengths_at_every_edge(page_size):
    edges = sorted({1, page_size - 1, page_size, page_size + 1, 63, 64, 65} - {0})
    contexts = [e + e % 3 * page_size for e in edges]
    check(FLOAT32, edges, contexts, page_size=page_size)


@pytest.mark.parametrize("block_m", [16, 128])
def test_tiles_rows_and_shared_pages(block_m):
    check(
        SMALL,
        [1, 1, 40, 16, 1, 3],
        [50, 1, 90, 48, 48, 51],
        tiling=Tiling(block_m, 16),
        scores=Scores(0.2, 30, 5.0),
        num_shared=3,
    )


@pytest.mark.parametrize("page_size", [3, 32])
def test_pages_smaller_and_larger_than_a_tile(page_size):
    """A tile is in one page, or gathers one id a token."""
    check(
        SMALL,
        [1, 20, 33, 0],
        [31, 64, 33, 0],
        page_size=page_size,
        tiling=Tiling(16, 16),
        max_pages=-(-64 // page_size),
        scores=Scores(0.2, 30, None),
    )


@pytest.mark.parametrize(
    ("head_dim", "cache", "tilings"),
    [
        (128, "bfloat16", {80: (128, 32), 89: (128, 32), 90: (128, 64), 100: (128, 64)}),
        (64, "bfloat16", {80: (128, 32), 100: (128, 32)}),
        (128, "int8", {80: (64, 32), 90: (128, 64)}),
        (256, "bfloat16", {80: (64, 32), 89: (64, 16), 90: (64, 32)}),
    ],
)
def test_tiles_are_as_large_as_registers_and_shared_memory_allow(head_dim, cache, tilings):
    shape = AttentionShape("any", 8, 2, head_dim, cache_dtype=cache)
    operands = jax.eval_shape(lambda: case(shape, [1], [1]))
    for capability, want in tilings.items():
        with tracing_for(Target("gpu", capability)):
            tiling = Tiling.of(operands)
        assert (tiling.block_m, tiling.block_s) == want
        assert tiling.num_stages == 3


def test_only_unused_rows():
    operands = case(SMALL, [0, 0], [0, 0], num_tokens=8)
    assert paged_prefill(operands, Scores(1.0, None, None), interpret=True).shape == (8, 6, 16)


_SCORES = Scores(0.3, 21, None)
_JITTED = jax.jit(partial(paged_prefill, scores=_SCORES, tiling=Tiling(16, 16), interpret=True))


@settings(max_examples=num_examples(30, nightly=300))
@given(
    rows=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 84)), min_size=4, max_size=4),
    num_shared=st.integers(0, 4),
)
def test_any_lengths(rows, num_shared):
    query_lens = [query for query, _ in rows]
    contexts = [query + prefix if query else 0 for query, prefix in rows]
    options = {"num_tokens": 48, "page_size": 8, "max_pages": 12, "num_shared": num_shared}
    operands = case(SMALL, query_lens, contexts, **options)
    assert_matches(_JITTED(operands), operands, _SCORES)
