"""Groups of layers whose pages live equally long, and how many pages contexts take of them."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class CacheGroup:
    """Layers whose pages live equally long: they share page tables and a pool of pages.

    Attributes:
        window: Tokens that they attend to, None for all.
        num_pages: P, page 0 included: it stands for padding and for pages that were given back, is
            never written and holds zeros, so that kernels may read it with a weight of 0.
    """

    window: int | None
    num_pages: int


def pages_for(num_tokens: int, page_size: int) -> int:
    """Pages that a context of so many tokens takes."""
    return math.ceil(num_tokens / page_size)


def most_live_pages(window: int | None, page_size: int, max_step_tokens: int) -> float:
    """Pages that one sequence holds at most while steps compute so many of its tokens each."""
    if window is None:
        return math.inf
    return pages_for(window - 1 + max_step_tokens, page_size) + 1
