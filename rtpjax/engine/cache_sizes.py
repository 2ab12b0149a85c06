"""How much memory contexts take, and how the cache's memory is split over its groups.

Layers with a window need few pages of a long context, and as many as the others of a short one. How
many pages which group should have thus depends on the requests, which are not known at the start:

    a group of windows gets     for each page that the widest group has
    windows 1/4 of a context    1/2 page, if contexts are half as long as the longest on average
    never more                  than 1 page: contexts shorter than the window fit as ever
                                than twice what all requests that can run hold at once; the rest is
                                for shared prefixes
    never less                  than 1/4 page, and than one request needs
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Iterable

from jax.typing import DTypeLike

from rtpjax.engine.cache_groups import CacheGroup, most_live_pages, pages_for
from rtpjax.engine.kv_cache import page_bytes, windows_of
from rtpjax.models import Pages

_MOST_PAGES = 1 << 24  # of any context
_LEAST_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class CacheSizes:
    """What the cache groups of a model take.

    Attributes:
        windows: Of each group, the widest first; None for layers that attend to everything.
        page_bytes: Bytes of a page of each group, over all layers and devices.
        page_size: Tokens a page holds.
        max_step_tokens: Most tokens of a step.
    """

    windows: tuple[int | None, ...]
    page_bytes: tuple[int, ...]
    page_size: int
    max_step_tokens: int

    @staticmethod
    def of(
        specs: Iterable[Pages], page_size: int, dtype: DTypeLike, max_step_tokens: int
    ) -> CacheSizes:
        """The sizes of a model's cache.

        Args:
            specs: What its layers keep.
            page_size: Tokens a page holds.
            dtype: Format of the cache.
            max_step_tokens: Most tokens of a step.
        """
        specs = tuple(specs)
        windows = windows_of(specs)
        each = (
            page_bytes([spec for spec in specs if spec.window == window], page_size, dtype)
            for window in windows
        )
        return CacheSizes(windows, tuple(each), page_size, max_step_tokens)

    def context_bytes(self, num_tokens: int) -> int:
        """The least cache that a context of so many tokens can be computed in, with padding."""
        return self._bytes(self._least(pages_for(num_tokens, self.page_size)))

    def longest_context(self, budget_bytes: int) -> int:
        """Tokens of the longest context that can be computed in so much cache."""
        counts = range(_MOST_PAGES)
        fitting = bisect.bisect_right(
            counts, budget_bytes, key=lambda n: self._bytes(self._least(n))
        )
        return max(fitting - 1, 0) * self.page_size

    def split(
        self, budget_bytes: int, max_num_seqs: int, max_model_len: int
    ) -> tuple[CacheGroup, ...]:
        """The groups with their pages.

        Args:
            budget_bytes: Cache of one dp group, on all devices together.
            max_num_seqs: Requests that run at once.
            max_model_len: Tokens of the longest context, which fits.
        """
        width = pages_for(max_model_len, self.page_size)
        most = max_num_seqs * width + 1  # more could not be used, but for prefixes
        least = self._least(width)
        shares = [self._share(window, max_model_len) for window in self.windows]
        useful = [self._useful(window, max_num_seqs) for window in self.windows]

        def pages(widest: int) -> list[int]:
            wanted = (
                round(min(share * widest, limit))
                for share, limit in zip(shares[1:], useful[1:], strict=True)
            )
            return [widest, *(max(n, need) for n, need in zip(wanted, least[1:], strict=True))]

        counts = range(most + 1)
        widest = bisect.bisect_right(counts, budget_bytes, key=lambda n: self._bytes(pages(n))) - 1
        found = pages(widest) if widest >= least[0] else least
        return tuple(map(CacheGroup, self.windows, found))

    def _least(self, num_pages: int) -> list[int]:
        """Pages of each group for one context that takes so many."""
        lives = (
            most_live_pages(window, self.page_size, self.max_step_tokens) for window in self.windows
        )
        return [1 + int(min(num_pages, live)) for live in lives]

    def _bytes(self, counts: Iterable[int]) -> int:
        return sum(n * each for n, each in zip(counts, self.page_bytes, strict=True))

    def _share(self, window: int | None, max_model_len: int) -> float:
        """Pages of a group for each page of the widest, by a context of half the longest."""
        if window is None:
            return 1.0
        return min(max((window + self.page_size) / (max_model_len / 2), _LEAST_SHARE), 1.0)

    def _useful(self, window: int | None, max_num_seqs: int) -> float:
        """Twice the pages that all requests hold at once: one of them each in the step's tokens."""
        held = most_live_pages(window, self.page_size, 1)
        return 1 + 2 * (max_num_seqs * (held + 1) + pages_for(self.max_step_tokens, self.page_size))
