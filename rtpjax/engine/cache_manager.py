"""Which sequence holds which pages of the cache: what the scheduler asks about memory.

Layers whose pages live equally long are a group, with a pool of pages and a list of pages for each
sequence: the layers that attend to everything are one, those of each window another. In the pages
of a window of 4 tokens, after 9 computed tokens, pages of 2 tokens:

    tokens               0 1 │ 2 3 │ 4 5 │ 6 7 │ 8
    full layers      17  │ 4 │ 9 │ 21 │ 2         all are kept
    window layers     0  │ 0 │ 0 │  8 │ 3         the next token sees tokens 6 to 9

Pages that no token to come can see are given back while the sequence runs (0 stands for them). They
keep their names, so a prefix can still be found in them until they are used for something else.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rtpjax.engine.cache_groups import CacheGroup, most_live_pages, pages_for
from rtpjax.engine.page_pool import PagePool
from rtpjax.engine.sequence import Sequence as Request


@dataclass(slots=True)
class _Group:
    """The pages of the layers of one lifetime.

    Attributes:
        window: Tokens that its layers attend to, None for all.
        pool: Its pages.
        page_size: Tokens a page holds.
        most_live: Pages that a prompt being computed holds at most.
        num_promised: Free pages that prompts being computed will still take.
    """

    window: int | None
    pool: PagePool
    page_size: int
    most_live: float
    num_promised: int = 0

    @property
    def num_seen(self) -> float:
        """Pages before a page's first token that it attends to, at most."""
        return math.inf if self.window is None else pages_for(self.window - 1, self.page_size)

    def first_live(self, position: int) -> int:
        """The first page that tokens from a position on attend to."""
        if self.window is None:
            return 0
        return max(position - self.window + 1, 0) // self.page_size

    def longest_hit(self, names: Sequence[bytes], most: int) -> int:
        """The longest prefix of at most so many pages after which a token finds what it sees."""
        if self.window is None:
            return len(self.pool.match(names[:most]))
        end = at = most  # the pages from `at` to `end` are known
        while at > max(end - self.num_seen, 0):
            at -= 1
            if not self.pool.knows(names[at]):
                end = at
        return end

    def num_available(self, promised: int) -> int:
        """Free pages that are promised to nobody else than who has so many of the promises."""
        return self.pool.num_free - self.num_promised + promised


class CacheManager:
    """Allocates the pages of all groups, and finds shared prefixes in them.

    Args:
        groups: All there are.
        page_size: Tokens a page holds.
        max_step_tokens: Most tokens that a sequence gets in one step.
        use_prefix_cache: Whether pages are found again by content.
    """

    def __init__(
        self,
        groups: Iterable[CacheGroup],
        page_size: int,
        max_step_tokens: int,
        *,
        use_prefix_cache: bool = True,
    ):
        self.page_size = page_size
        self.use_prefix_cache = use_prefix_cache
        self._groups = [
            _Group(
                group.window,
                PagePool(group.num_pages),
                page_size,
                most_live_pages(group.window, page_size, max_step_tokens),
            )
            for group in groups
        ]
        self._has_windows = any(group.window is not None for group in self._groups)

    @property
    def pools(self) -> list[PagePool]:
        """The pool of each group."""
        return [group.pool for group in self._groups]

    def match(self, names: Sequence[bytes]) -> int:
        """Pages of the longest prefix that every group can go on from, by the names of its pages.

        A group of a window can where the pages of the last window are known.
        """
        most, before = len(names), -1
        while most != before:
            before = most
            for group in self._groups:
                most = group.longest_hit(names, most)
        return most

    def start(self, sequence: Request, num_running: int) -> bool:
        """Gives a sequence pages for its known tokens, those of a known prefix shared.

        Of a window's group a long prompt has no more than it needs at once; the others are promised
        to it as it gives back those that it has passed. A page for each running sequence stays
        free, or the newcomer would soon be preempted again.

        Args:
            sequence: One without pages.
            num_running: Sequences that have pages.

        Returns:
            Whether there were enough; num_computed then says how much of it is known.
        """
        names = self._names(sequence)
        total, num_known = pages_for(sequence.num_tokens, self.page_size), self.match(names)
        held: list[list[int]] = []
        for group in self._groups:
            first = int(max(num_known - group.num_seen, 0))
            shared = group.pool.match(names[first:num_known])
            group.pool.share(shared)
            held.append([0] * first + shared)
        needed = [
            int(min(total - num_known, group.most_live - sum(page > 0 for page in pages)))
            for group, pages in zip(self._groups, held, strict=True)
        ]
        if any(
            count + num_running > group.num_available(0)
            for group, count in zip(self._groups, needed, strict=True)
        ):
            for group, pages in zip(self._groups, held, strict=True):
                group.pool.release([page for page in pages if page])
            return False
        for group, pages, count in zip(self._groups, held, needed, strict=True):
            pages += group.pool.take(count)
        sequence.pages = held
        sequence.num_passed = [pages.count(0) for pages in held]
        sequence.num_promised = [0] * len(held)
        sequence.num_admitted = total
        sequence.num_published = num_known
        sequence.num_computed = num_known * self.page_size
        self._promise(sequence)
        return True

    def extend(self, sequence: Request, count: int, *, spare: int = 0) -> bool:
        """Gives a sequence what it lacks of pages for so many tokens more.

        Args:
            sequence: One with pages.
            count: Tokens.
            spare: Pages of each group that have to be left.

        Returns:
            Whether there were enough; else it has what it had.
        """
        total = pages_for(sequence.num_computed + count, self.page_size)
        if all(len(pages) >= total for pages in sequence.pages):
            return True
        each = list(zip(self._groups, sequence.pages, sequence.num_promised, strict=True))
        for group, pages, promised in each:
            if total - len(pages) > max(group.num_available(promised) - spare, 0):
                return False
        for group, pages, _ in each:
            pages += group.pool.take(max(total - len(pages), 0))
        self._promise(sequence)
        return True

    def trim(self, sequence: Request) -> None:
        """Gives back the pages that no token to come of a sequence can see.

        Tokens that have been computed may be computed again (Scheduler.retract), but never one
        before the last that is known. To be called between steps: a step still reads the pages that
        its own tokens see.
        """
        if not self._has_windows:
            return
        position = min(sequence.num_computed, len(sequence.token_ids) - 1)
        is_changed = False
        for g, group in enumerate(self._groups):
            passed, first = sequence.num_passed[g], group.first_live(position)
            if first > passed:
                pages = sequence.pages[g]
                group.pool.release(pages[passed:first])
                pages[passed:first] = [0] * (first - passed)
                sequence.num_passed[g] = first
                is_changed = True
        if is_changed:
            self._promise(sequence)

    def publish(self, sequence: Request) -> None:
        """Names the pages that are full of known tokens.

        Their contents may still be under way on the device; steps run in order, and within one all
        keys and values are written before any is read, so whoever finds a page reads it filled, in
        this very step too.
        """
        if not self.use_prefix_cache:
            return
        full = min(sequence.num_computed, len(sequence.token_ids)) // self.page_size
        if full > sequence.num_published:
            names = sequence.names(self.page_size)
            for group, pages in zip(self._groups, sequence.pages, strict=True):
                for i in range(sequence.num_published, full):
                    group.pool.publish(pages[i], names[i])
            sequence.num_published = full

    def give_back(self, sequence: Request) -> None:
        """Takes all pages of a sequence back."""
        for g, group in enumerate(self._groups):
            group.pool.release(sequence.pages[g][sequence.num_passed[g] :])
            group.num_promised -= sequence.num_promised[g]
        sequence.pages, sequence.num_passed, sequence.num_promised = [], [], []

    def reset(self) -> None:
        """Forgets everything: who held what, and all prefixes."""
        for group in self._groups:
            group.pool, group.num_promised = PagePool(group.pool.num_pages), 0

    def check(self, running: Iterable[Request]) -> None:
        """Asserts that the books agree with the sequences that hold pages."""
        running = list(running)
        for g, group in enumerate(self._groups):
            passed = [sequence.num_passed[g] for sequence in running]
            lists = [sequence.pages[g] for sequence in running]
            group.pool.check(pages[n:] for pages, n in zip(lists, passed, strict=True))
            assert group.num_promised == sum(sequence.num_promised[g] for sequence in running)
            for sequence, pages, n in zip(running, lists, passed, strict=True):
                assert not any(pages[:n]) and all(pages[n:])
                assert len(pages) * self.page_size >= sequence.num_computed
                # What the next token sees is there.
                assert n <= group.first_live(
                    min(sequence.num_computed, len(sequence.token_ids) - 1)
                )
                assert len(pages) + sequence.num_promised[g] <= max(
                    len(pages), sequence.num_admitted
                )

    def _names(self, sequence: Request) -> list[bytes]:
        """Names of the pages that a sequence may share."""
        if not self.use_prefix_cache or sequence.scores_prompt:
            return []
        # The last token is always computed: its logits are what the step is for.
        most = (sequence.num_tokens - 1) // self.page_size
        return sequence.names(self.page_size)[:most]

    def _promise(self, sequence: Request) -> None:
        """Counts what a sequence will still take for the tokens that it was admitted with."""
        for g, group in enumerate(self._groups):
            num_held = len(sequence.pages[g])
            room = group.most_live - (num_held - sequence.num_passed[g])
            promised = int(max(min(room, sequence.num_admitted - num_held), 0))
            group.num_promised += promised - sequence.num_promised[g]
            sequence.num_promised[g] = promised
