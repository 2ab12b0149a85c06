"""How the cache's memory is split over groups of pages."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtpjax.engine.cache_groups import CacheGroup
from rtpjax.engine.cache_sizes import CacheSizes
from rtpjax.models import Pages

FULL = CacheSizes((None,), (100,), page_size=4, max_step_tokens=16)
BOTH = CacheSizes((None, 8), (100, 500), page_size=4, max_step_tokens=16)
WINDOW = dataclasses.replace(FULL, windows=(8,))


def test_a_group_for_each_window_with_the_bytes_of_its_layers():
    layer = Pages(2, 8, 8)
    near, far = (dataclasses.replace(layer, window=window) for window in (8, 64))
    sizes = CacheSizes.of([near, layer, near, far], 4, jnp.float32, 16)
    assert sizes.windows == (None, 64, 8)
    one = 4 * 2 * 16 * 4
    assert sizes.page_bytes == (one, one, 2 * one)


def test_contexts_that_the_memory_holds():
    # 10 tokens are 3 pages, and one for padding.
    assert FULL.context_bytes(10) == 4 * 100
    assert FULL.longest_context(4 * 100) == 12
    assert FULL.longest_context(99) == FULL.longest_context(0) == FULL.longest_context(-5) == 0
    # 16 tokens at once behind 7 are 6 pages, and one more where they do not begin with a page.
    assert WINDOW.context_bytes(10) == 4 * 100
    assert WINDOW.context_bytes(1000) == 8 * 100
    assert WINDOW.longest_context(8 * 100) > 10**7
    assert BOTH.context_bytes(1000) == 251 * 100 + 8 * 500
    assert BOTH.longest_context(251 * 100 + 8 * 500) == 1000


def test_models_without_windows_have_all_pages_in_one_group():
    assert FULL.split(1000, max_num_seqs=8, max_model_len=32) == (CacheGroup(None, 10),)
    assert FULL.split(10**9, max_num_seqs=8, max_model_len=32) == (CacheGroup(None, 8 * 8 + 1),)


def test_where_memory_is_plenty_windows_take_what_they_can_use():
    full, window = BOTH.split(10**9, max_num_seqs=8, max_model_len=4000)
    assert full.num_pages == 8 * 1000 + 1
    # Twice: 7 tokens and one are 2 pages, and one for those that do not begin with a page ...
    held = 8 * (2 + 1 + 1) + 16 // 4
    assert window.num_pages == 1 + 2 * held


def test_where_memory_is_scarce_it_is_split_by_contexts_of_half_the_longest():
    full, window = BOTH.split(10**5, max_num_seqs=10**4, max_model_len=48)
    assert window.num_pages == round(full.num_pages * (8 + 4) / 24)
    assert 0 <= 10**5 - 100 * full.num_pages - 500 * window.num_pages < 600
    # A window of half the longest context or more: as if it were none.
    full, window = BOTH.split(10**5, max_num_seqs=10**4, max_model_len=16)
    assert window.num_pages == full.num_pages == 10**5 // 600


@given(
    windows=st.sampled_from([(None,), (None, 8), (64,), (64, 8), (None, 64, 8)]),
    length=st.integers(2, 3000),
    spare=st.integers(0, 10**6),
    max_num_seqs=st.integers(1, 64),
)
def test_what_is_split_is_no_more_than_there_is_and_the_longest_context_fits(
    windows, length, spare, max_num_seqs
):
    sizes = CacheSizes(windows, tuple(range(100, 100 + len(windows))), 4, 16)
    budget = sizes.context_bytes(length) + spare
    assert sizes.longest_context(budget) >= length
    groups = sizes.split(budget, max_num_seqs, length)
    assert [group.window for group in groups] == list(windows)
    used = sum(g.num_pages * size for g, size in zip(groups, sizes.page_bytes, strict=True))
    assert used <= budget
    each = sizes.split(sizes.context_bytes(length), 1, length)
    assert all(g.num_pages >= least.num_pages for g, least in zip(groups, each, strict=True))


@pytest.mark.parametrize("page_size", [16, 64])
def test_short_contexts_lose_no_more_than_a_quarter_or_so_of_their_pages(page_size):
    """Five of six layers in windows of 1,024 tokens, 32K tokens at most, memory for 60K."""
    sizes = CacheSizes((None, 1024), (page_size, 5 * page_size), page_size, 8192)
    full, window = sizes.split(6 * 60_000, 256, 32768)
    assert window.num_pages / (60_000 / page_size) > 0.6
    assert full.num_pages / (60_000 / page_size) > 2
