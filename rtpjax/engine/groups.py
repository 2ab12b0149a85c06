"""The dp groups: a scheduler and pages each, and which of them a new request goes to.

All groups take part in every step, in one program; a request stays with its group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rtpjax.engine.scheduler import ScheduledRow, Scheduler, SchedulerStats
from rtpjax.engine.sequence import Sequence


class Groups:
    """Schedules the requests of all groups.

    Args:
        schedulers: One for each group, alike but for their pools.
    """

    def __init__(self, schedulers: Iterable[Scheduler]):
        self.schedulers = list(schedulers)
        # Names of the prompts' pages that a group's live requests have or will have.
        self._promised: list[Counter[bytes]] = [Counter() for _ in self.schedulers]

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence in the group that has the least to do for it."""
        if len(self.schedulers) > 1:
            sequence.group = min(range(len(self.schedulers)), key=lambda g: self._cost(g, sequence))
            self._promised[sequence.group].update(self._prompt_names(sequence))
        self.of(sequence).add(sequence)

    def of(self, sequence: Sequence) -> Scheduler:
        """The scheduler that a sequence belongs to."""
        return self.schedulers[sequence.group]

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, whatever its state, and frees what it holds."""
        if len(self.schedulers) > 1:
            promised = self._promised[sequence.group]
            promised.subtract(names := self._prompt_names(sequence))
            for name in names:
                if not promised[name]:
                    del promised[name]
        self.of(sequence).finish(sequence)

    def schedule(self) -> list[list[ScheduledRow]]:
        """Fills one step: the rows of each group."""
        return [scheduler.schedule() for scheduler in self.schedulers]

    def reset(self) -> None:
        """See Scheduler.reset."""
        for scheduler, promised in zip(self.schedulers, self._promised, strict=True):
            scheduler.reset()
            promised.clear()

    @property
    def running(self) -> list[Sequence]:
        """Sequences that hold pages."""
        return [sequence for s in self.schedulers for sequence in s.running]

    @property
    def waiting(self) -> list[Sequence]:
        """Sequences that wait for pages or for a slot."""
        return [sequence for s in self.schedulers for sequence in s.waiting]

    @property
    def num_waiting(self) -> int:
        """How many wait; safe to ask from another thread."""
        return sum(len(s.waiting) for s in self.schedulers)

    @property
    def pages(self) -> tuple[int, int]:
        """All pages and the free ones, of the cache group that has the least part of them free."""
        pools = zip(*(scheduler.cache.pools for scheduler in self.schedulers), strict=True)
        each = [(sum(p.capacity for p in some), sum(p.num_free for p in some)) for some in pools]
        return min(each, key=lambda pages: pages[1] / pages[0])

    @property
    def stats(self) -> SchedulerStats:
        """The groups' counters, added up."""
        each = [s.stats for s in self.schedulers]
        return SchedulerStats(
            num_preemptions=sum(s.num_preemptions for s in each),
            prefix_queried_tokens=sum(s.prefix_queried_tokens for s in each),
            prefix_hit_tokens=sum(s.prefix_hit_tokens for s in each),
        )

    def check(self) -> None:
        """Asserts that queues, slots, pages and promises agree."""
        for g, scheduler in enumerate(self.schedulers):
            scheduler.check()
            live = [*scheduler.running, *scheduler.waiting]
            assert all(sequence.group == g for sequence in live)
            if len(self.schedulers) > 1:
                names = (name for sequence in live for name in self._prompt_names(sequence))
                assert self._promised[g] == Counter(names)

    def _cost(self, g: int, sequence: Sequence) -> tuple[bool, int, int]:
        """What is compared between groups, the least is best.

        A full group comes last. Then prompt tokens to compute, where each live request weighs as
        much as a page: a common prefix draws requests together until others would be served sooner
        elsewhere.
        """
        scheduler = self.schedulers[g]
        num_live = len(scheduler.running) + len(scheduler.waiting)
        known = self._known_tokens(g, sequence)
        cost = sequence.num_prompt_tokens - known + num_live * scheduler.cache.page_size
        return num_live >= scheduler.max_num_seqs, cost, num_live

    def _known_tokens(self, g: int, sequence: Sequence) -> int:
        """Tokens of the prompt's longest beginning that the group has, or will have in a moment."""
        scheduler, promised = self.schedulers[g], self._promised[g]
        names = self._prompt_names(sequence)
        count = scheduler.cache.match(names)
        while count < len(names) and names[count] in promised:
            count += 1
        return count * scheduler.cache.page_size

    def _prompt_names(self, sequence: Sequence) -> list[bytes]:
        scheduler = self.of(sequence)
        if not scheduler.cache.use_prefix_cache or sequence.scores_prompt:
            return []
        full = sequence.num_prompt_tokens // scheduler.cache.page_size
        return sequence.names(scheduler.cache.page_size)[:full]
