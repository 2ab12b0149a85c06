"""Decides what the next step computes.

There are no prefill and decode phases: a sequence has tokens computed and tokens wanted, and a step
moves the one towards the other under two limits, tokens and rows. Sequences that want one token
come first, so that a long prompt never holds up the others; then prompts in progress; then new
requests. When pages run out the latest sequence gives all of its pages back and starts again later
(it recomputes, and mostly finds its pages in the prefix cache).

A step samples at the last token of a row. Where the log-probabilities of a prompt are wanted, the
row has an output for each of the prompt's tokens, too. A row of one token may have drafts of those
that follow (rtpjax.engine.drafts), as long as all rows together fit a decode bucket: then it has an
output after each of them.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Container
from dataclasses import dataclass, field, replace

from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A part of one sequence in a step.

    Attributes:
        sequence: Whose tokens.
        start: Position of the first token to compute.
        count: How many, without drafts.
        samples: Whether the row's last token is the sequence's last, so that the next one is
            sampled.
        drafts: Tokens that may be sampled next, to be computed along; they count once they are.
    """

    sequence: Sequence
    start: int
    count: int
    samples: bool
    drafts: tuple[int, ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens to compute, drafts included."""
        return self.count + len(self.drafts)

    @property
    def num_scored(self) -> int:
        """Its first so many tokens are followed by tokens of the prompt that are to be scored."""
        if not self.sequence.scores_prompt:
            return 0
        end = min(self.start + self.count, self.sequence.num_prompt_tokens - 1)
        return max(0, end - self.start)

    @property
    def num_outputs(self) -> int:
        """Of how many of its tokens the logits are wanted.

        Those that score, then the last one and the drafts.
        """
        return self.num_scored + self.samples + len(self.drafts)


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
        if all(row.samples and row.count == 1 for row in rows.values()):
            self._add_drafts(rows)
        return list(rows.values())

    def _add_drafts(self, rows: dict[Sequence, ScheduledRow]) -> None:
        """Gives rows drafts while there is room; rows that come later have no less than others."""
        spare = min(self.max_num_seqs, self.max_num_batched_tokens) - len(rows)
        num_left = len(rows)
        for sequence, row in rows.items():
            if spare <= 0:
                return
            drafts = self._drafts(sequence, row, -(-spare // num_left))
            if drafts:
                rows[sequence] = replace(row, drafts=drafts)
            spare -= len(drafts)
            num_left -= 1

    def _drafts(self, sequence: Sequence, row: ScheduledRow, most: int) -> tuple[int, ...]:
        """Drafts for a row, as far as pages can be had without taking any from others."""
        num_pending = row.start + row.count - len(sequence.token_ids)
        if not sequence.may_draft or num_pending > 1:
            return ()
        most = min(most, sequence.max_tokens - sequence.num_sampled)
        if most <= 0:
            return ()
        assert sequence.drafter is not None
        drafts = sequence.drafter.propose(sequence.token_ids, num_pending, most)
        while drafts and not self.cache.extend(sequence, len(drafts), spare=len(self.running)):
            drafts = drafts[:-1]
        return drafts

    def accept_draft(self, sequence: Sequence) -> None:
        """The token recorded last had been drafted: it is computed, and the next one sampled."""
        sequence.num_computed += 1
        sequence.num_sampled += 1

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
