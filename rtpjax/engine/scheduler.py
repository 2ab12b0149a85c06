"""Decides what the next step computes.

There are no prefill and decode phases: a sequence has tokens computed and tokens wanted, and a step
moves the one towards the other under two limits, tokens and rows. Sequences that want one token
come first, so that a long prompt never holds up the others; then prompts in progress; then new
requests. When pages run out the latest sequence gives all of its pages back and starts again later
(it recomputes, and mostly finds its pages in the prefix cache).

A step samples at the last token of a row. Where the log-probabilities of a prompt are wanted, the
row has an output for each of the prompt's tokens, too.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Container
from dataclasses import dataclass, field

from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A part of one sequence in a step.

    Attributes:
        sequence: Whose tokens.
        start: Position of the first token to compute.
        count: How many.
        samples: Whether the row's last token is the sequence's last, so that the next one is
            sampled.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool

    @property
    def num_scored(self) -> int:
        """Its first so many tokens are followed by tokens of the prompt that are to be scored."""
        if not self.sequence.scores_prompt:
            return 0
        end = min(self.start + self.count, self.sequence.num_prompt_tokens - 1)
        return max(0, end - self.start)

    @property
    def num_outputs(self) -> int:
        """Of how many of its tokens the logits are wanted: those that score, then the last one."""
        return self.num_scored + self.samples


@dataclass(slots=True)
class SchedulerStats:
    """Counters that only grow."""

    num_preemptions: int = 0
    prefix_queried_tokens: int = 0
    prefix_hit_tokens: int = 0


@dataclass(slots=True)
class Scheduler:
    """Owns the queues.

    Attributes:
        cache: Where pages come from.
        max_num_seqs: Most sequences in a step.
        max_num_batched_tokens: Most tokens in a step.
    """

    cache: CacheManager
    max_num_seqs: int
    max_num_batched_tokens: int
    waiting: list[Sequence] = field(default_factory=list)
    running: list[Sequence] = field(default_factory=list)
    stats: SchedulerStats = field(default_factory=SchedulerStats)
    _free_slots: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self._free_slots = list(range(self.max_num_seqs))

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence by its order."""
        bisect.insort(self.waiting, sequence, key=lambda s: s.order)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, whatever its state, and frees what it holds."""
        assert not sequence.is_finished
        sequence.is_finished = True
        if sequence in self.running:
            self.running.remove(sequence)
            self._give_back(sequence)
        else:
            self.waiting.remove(sequence)

    def schedule(self) -> list[ScheduledRow]:
        """Fills one step; empty when there is nothing to do."""
        rows: dict[Sequence, ScheduledRow] = {}
        budget = self.max_num_batched_tokens
        num_preemptions = self.stats.num_preemptions
        for sequence in self.running:
            self.cache.trim(sequence)
        for sequence in sorted(self.running, key=lambda s: (s.num_wanted > 1, s.order)):
            count = min(sequence.num_wanted, budget)
            if count and sequence.slot >= 0 and self._make_room(sequence, count, rows):
                rows[sequence] = self._advance(sequence, count)
                budget -= count
        assert all(s.slot >= 0 for s in rows), "a scheduled sequence was preempted"
        if self.stats.num_preemptions == num_preemptions:
            while budget and (sequence := self._admit()) is not None:
                count = min(sequence.num_wanted, budget)
                if count:
                    rows[sequence] = self._advance(sequence, count)
                    budget -= count
        return list(rows.values())

    def record(self, sequence: Sequence, token_id: int) -> None:
        """Tells the value of a sampled token, in order."""
        sequence.token_ids.append(token_id)
        if sequence.slot >= 0:
            self.cache.publish(sequence)

    def retract(self, sequence: Sequence) -> None:
        """Samples that are not known yet do not count: the token after the known ones is new."""
        known = sequence.num_output_tokens
        sequence.num_dropped += sequence.num_sampled - known
        sequence.num_sampled = known
        sequence.num_computed = min(sequence.num_computed, sequence.num_tokens - 1)

    def reset(self) -> None:
        """Starts with fresh books and no sequence: the device's state was lost, or these are wrong.

        Sequences can be added again once they have been restarted.
        """
        self.cache.reset()
        self.waiting, self.running = [], []
        self._free_slots = list(range(self.max_num_seqs))

    def _admit(self) -> Sequence | None:
        """Moves the first sequence that can start to running if there are pages for it."""
        if len(self.running) == self.max_num_seqs:
            return None
        at = next((i for i, s in enumerate(self.waiting) if s.waits_for != "grammar"), None)
        if at is None or not self.cache.start(self.waiting[at], len(self.running)):
            return None
        sequence = self.waiting.pop(at)
        sequence.slot = self._free_slots.pop()
        bisect.insort(self.running, sequence, key=lambda s: s.order)
        if sequence.epoch == 0:
            sequence.wait_s = time.monotonic() - sequence.arrived_s
            sequence.num_cached_tokens = sequence.num_computed
            if self.cache.use_prefix_cache:
                self.stats.prefix_queried_tokens += sequence.num_tokens
                self.stats.prefix_hit_tokens += sequence.num_computed
        return sequence

    def _make_room(self, sequence: Sequence, count: int, rows: Container[Sequence]) -> bool:
        """Gives the sequence pages for count more tokens; False if it was preempted itself.

        As a rule only sequences that want one token need a page (what prompts need was set aside
        when they were admitted), and they come in order. The victim is the latest that is not in
        the step yet.
        """
        while not self.cache.extend(sequence, count):
            victim = next(s for s in reversed(self.running) if s not in rows)
            self._preempt(victim)
            if victim is sequence:
                return False
        return True

    def _advance(self, sequence: Sequence, count: int) -> ScheduledRow:
        start = sequence.num_computed
        samples = start + count == sequence.num_tokens
        sequence.num_computed += count
        sequence.num_sampled += samples
        self.cache.publish(sequence)
        return ScheduledRow(sequence, start, count, samples)

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self._give_back(sequence)
        sequence.num_computed = 0
        sequence.epoch += 1
        self.stats.num_preemptions += 1
        self.add(sequence)

    def _give_back(self, sequence: Sequence) -> None:
        self.cache.give_back(sequence)
        self._free_slots.append(sequence.slot)
        sequence.slot = -1

    def check(self) -> None:
        """Asserts that queues, slots and pages agree."""
        self.cache.check(self.running)
        slots = [s.slot for s in self.running]
        assert sorted(slots + self._free_slots) == list(range(self.max_num_seqs))
        assert all(not s.pages and s.slot < 0 for s in self.waiting)
        for s in self.running:
            assert s.num_computed <= s.num_tokens <= s.num_prompt_tokens + s.max_tokens
