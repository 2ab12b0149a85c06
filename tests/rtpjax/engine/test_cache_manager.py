"""Pages of several lifetimes; the scheduler's tests drive random operations on them."""

from __future__ import annotations

import pytest

from rtpjax.engine.cache_groups import CacheGroup, pages_for
from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.request import GenerationRequest
from rtpjax.engine.sequence import Sequence

PAGE = 4


def manager(*groups: tuple[int | None, int], max_step_tokens: int = 8, **options) -> CacheManager:
    return CacheManager([CacheGroup(*group) for group in groups], PAGE, max_step_tokens, **options)


def sequence(length: int, seed: int = 0) -> Sequence:
    prompt = tuple((seed + 7 * i) % 100 for i in range(length))
    return Sequence(GenerationRequest("r", prompt), order=(0, 0), max_tokens=1000)


def computed(cache: CacheManager, s: Sequence, count: int) -> None:
    """A step of the sequence, as the scheduler has it."""
    cache.trim(s)
    assert cache.extend(s, count)
    s.num_computed += count
    cache.publish(s)
    cache.check([s])


def decoded(cache: CacheManager, s: Sequence, count: int) -> None:
    for token_id in range(count):
        s.token_ids.append(token_id)
        s.num_sampled += 1
        computed(cache, s, 1)


def num_held(s: Sequence) -> list[int]:
    return [sum(page > 0 for page in pages) for pages in s.pages]


def test_pages_that_no_window_reaches_are_given_back_and_their_places_are_kept():
    cache, s = manager((None, 20), (6, 20)), sequence(9)
    assert cache.start(s, 0)
    computed(cache, s, 8)
    computed(cache, s, 1)
    assert num_held(s) == [3, 3]
    decoded(cache, s, 1)  # the token at position 9 sees 4 to 9
    assert num_held(s) == [3, 2]
    assert [page > 0 for page in s.pages[1]] == [False, True, True]
    full, window = cache.pools
    assert (full.capacity - full.num_free, window.capacity - window.num_free) == (3, 2)
    cache.give_back(s)
    assert (full.num_free, window.num_free) == (19, 19)
    cache.check([])


def test_a_token_may_be_computed_again_so_what_it_sees_is_kept():
    cache, s = manager((4, 20)), sequence(9)
    assert cache.start(s, 0)
    computed(cache, s, 8)
    computed(cache, s, 1)
    s.num_sampled, s.num_computed = 1, 10  # a token in flight, of unknown value
    cache.trim(s)
    # It is retracted, and position 8 computed again, which sees 5 to 8.
    s.num_sampled, s.num_computed = 0, 8
    cache.check([s])
    assert s.num_passed == [1]


def test_a_long_prompt_takes_no_more_pages_of_a_window_than_it_needs_at_once():
    cache, s = manager((None, 200), (5, 9)), sequence(400)
    other = sequence(20, seed=1)
    assert cache.start(s, 0)
    most = pages_for(5 - 1 + 8, PAGE) + 1
    for _ in range(50):
        assert num_held(s)[1] <= most
        # The pages that it has given back are promised to it: a newcomer does not get them.
        assert not cache.start(other, 1)
        computed(cache, s, 8)
    assert len(s.pages[1]) == 100


def test_a_hit_needs_the_pages_of_the_last_window_only():
    cache, s = manager((None, 50), (6, 50)), sequence(40)
    assert cache.start(s, 0)
    for _ in range(5):
        computed(cache, s, 8)
    names = s.names(PAGE)
    full, window = cache.pools
    cache.give_back(s)
    assert cache.match(names) == 10
    window.allocate(window.num_free - 1)  # all but the page that was released last
    assert full.match(names) == full.match(names[:10])
    assert cache.match(names) < 10


@pytest.mark.parametrize("kept", [[7, 8], [3, 4, 8], [0, 1, 2, 3], [0], []])
def test_a_hit_ends_where_every_group_can_go_on(kept):
    """A window of 6 tokens sees two pages before a page's first token."""
    cache = manager((None, 50), (6, 50))
    s = sequence(40)
    names = s.names(PAGE)
    full, window = cache.pools
    for page, name in zip(full.take(9), names, strict=False):
        full.publish(page, name)
    for i, page in zip(kept, window.take(len(kept)), strict=True):
        window.publish(page, names[i])
    known = set(kept)
    expected = max(m for m in range(10) if {i for i in (m - 2, m - 1) if i >= 0} <= known)
    assert cache.match(names) == expected


def test_nothing_is_found_without_a_prefix_cache_and_nothing_taken_where_pages_lack():
    cache = manager((None, 4), (6, 50), use_prefix_cache=False)
    assert not cache.start(sequence(17), 0)
    cache.check([])
    s = sequence(12)
    assert cache.start(s, 0)
    before = [list(pages) for pages in s.pages]
    s.num_computed = 12
    assert not cache.extend(s, 1)
    assert s.pages == before
    cache.check([s])


def test_pages_can_be_left_for_others():
    cache, s = manager((None, 4)), sequence(4)
    assert cache.start(s, 0)
    s.num_computed = 4
    assert not cache.extend(s, 4, spare=2)
    assert cache.extend(s, 4, spare=1)


def test_a_long_context_holds_less_than_a_quarter_with_five_of_six_layers_in_windows():
    """8,192 tokens, a window of 512, pages of 32 tokens: pages of all six layers."""
    cache = CacheManager([CacheGroup(None, 400), CacheGroup(512, 400)], 32, 512)
    s = sequence(8192)
    assert cache.start(s, 0)
    most = 0
    for _ in range(8192 // 512):
        computed(cache, s, 512)
        full, window = num_held(s)
        most = max(most, full + 5 * window)
    decoded(cache, s, 1)
    full, window = num_held(s)
    assert (full, window) == (257, 17)
    assert full + 5 * window < most < 6 * 256 / 3
    assert full + 5 * window < 6 * 256 / 4
