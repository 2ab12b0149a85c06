"""The decode kernel in interpret mode against the plain twin, over the shapes of real models."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.cases import (
    DISTINCT_SHAPES,
    WHOLE_SHAPES,
    case,
    decode_lens,
    reduced,
    scores_of,
)
from pallas_kernels.paged_decode import MAX_SPLITS, Tiling, paged_decode
from pallas_kernels.paged_tiles import Scores
from pallas_kernels.registry import Target, tracing_for
from pallas_kernels.shapes import AttentionShape
from tests.examples import num_examples
from tests.pallas_kernels.shapes import assert_matches

SMALL = AttentionShape("small", 6, 2, 16, cache_dtype="float32")
FLOAT32 = AttentionShape("SmolLM2-135M float32", 9, 3, 64, cache_dtype="float32")


def check(shape, context_lens, *, tiling=None, scores=None, **options):
    operands = case(shape, [1] * len(context_lens), context_lens, **options)
    scores = scores or scores_of(shape)
    got = paged_decode(operands, scores, tiling=tiling, interpret=True)
    assert not np.asarray(got.astype("float32"))[np.asarray(context_lens) == 0].any()
    assert_matches(got, operands, scores)


@pytest.mark.parametrize("shape", DISTINCT_SHAPES, ids=lambda s: s.name)
def test_shapes_of_models(shape):
    check(reduced(shape), [0, 1, 15, 16, 17, 130], tiling=Tiling(2, 32))


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [8, 16, 64])
@pytest.mark.parametrize("shape", WHOLE_SHAPES, ids=lambda s: s.name)
def test_whole_shapes_of_models(shape, page_size):
    """Every shape in its own format and in float32; the last row fills its table."""
    lens = [*decode_lens(page_size), 511, 512]
    check(shape, lens, page_size=page_size, num_shared=2, max_pages=512 // page_size)


@pytest.mark.parametrize("page_size", [1, 64])
def test_lengths_at_every_edge(page_size):
    lens = {1, page_size - 1, page_size, page_size + 1, 127, 128, 129, 191, 192}
    check(
        FLOAT32,
        sorted(lens),
        page_size=page_size,
        tiling=Tiling(4, 64),
        max_pages=-(-192 // page_size),
    )


@pytest.mark.parametrize("splits", [1, 8])
def test_splits_and_rows_that_share_pages(splits):
    scores = Scores(0.2, 70, 5.0)
    shape = AttentionShape("sinks", 6, 2, 16, has_sinks=True, cache_dtype="float32")
    check(shape, [0, 3, 70, 71, 300, 64], tiling=Tiling(splits, 16), scores=scores, num_shared=3)


_JITTED = {
    splits: jax.jit(
        partial(
            paged_decode, scores=Scores(0.3, 21, None), tiling=Tiling(splits, 16), interpret=True
        )
    )
    for splits in (1, 4)
}


@settings(max_examples=num_examples(30, nightly=300))
@given(
    lens=st.lists(st.integers(0, 96), min_size=5, max_size=5),
    splits=st.sampled_from([1, 4]),
    num_shared=st.integers(0, 4),
)
def test_any_lengths(lens, splits, num_shared):
    operands = case(SMALL, [1] * 5, lens, page_size=8, max_pages=12, num_shared=num_shared)
    assert_matches(_JITTED[splits](operands), operands, Scores(0.3, 21, None))


@pytest.mark.parametrize("page_size", [3, 32])
def test_pages_smaller_and_larger_than_a_tile(page_size):
    """A tile is in one page, or gathers one id a token; the last row fills its table."""
    lens = [0, 1, page_size, 31, 32, 33, 128]
    shape = dataclasses.replace(SMALL, cache_dtype="int8")
    for small in (SMALL, shape):
        check(
            small,
            lens,
            page_size=page_size,
            tiling=Tiling(2, 16),
            max_pages=-(-128 // page_size),
            scores=Scores(0.3, 50, None),
        )


def test_three_stages_where_shared_memory_suffices():
    """Two tiles of float32 heads of 256 with 64 query heads do not fit 99 KB, even of 16 tokens."""
    shape = AttentionShape("large", 64, 1, 256, cache_dtype="float32")
    operands = jax.eval_shape(lambda: case(shape, [1], [1]))

    def tiling(capability):
        with tracing_for(Target("gpu", capability)):
            chosen = Tiling.of(operands)
        return chosen.block_s, chosen.num_stages

    assert (tiling(89), tiling(80)) == ((16, 2), (16, 3))


def test_few_rows_are_split_and_many_are_not():
    shape = AttentionShape("Llama-3.1-8B", 32, 8, 128)

    def splits(rows, max_pages):
        operands = jax.eval_shape(lambda: case(shape, [1] * rows, [1] * rows, max_pages=max_pages))
        return Tiling.of(operands).num_splits

    assert splits(1, 64) == 8  # two tiles of 64 tokens each for 1,024 tokens
    assert splits(1, 512) == MAX_SPLITS
    assert splits(8, 64) == 4  # 256 programs: 8 rows and 8 kv heads
    assert splits(64, 8) == 1
