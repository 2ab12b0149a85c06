"""The scheduler drives a simulated device, under the engine's own order of events.

The device keeps, for each place in the cache, the context that its key and value were computed
from, in each cache group. A step writes all its places, then each row must find all of its context
that it sees in its pages: a page shared wrongly, given back or reused too early, written twice or
published too soon shows as another context than the row's own.
"""

from __future__ import annotations

import dataclasses
import random
import zlib

import hypothesis
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rtpjax.engine.cache_groups import CacheGroup, most_live_pages
from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.request import GenerationRequest
from rtpjax.engine.scheduler import ScheduledRow, Scheduler
from rtpjax.engine.sequence import Sequence
from tests.examples import num_examples

END = 0
NUM_TOKENS = 6


def next_token(context: tuple[int, ...]) -> int:
    """The simulated model: a token that depends on the whole context."""
    return zlib.crc32(bytes(context)) % NUM_TOKENS


def expected_output(prompt: tuple[int, ...], max_tokens: int) -> list[int]:
    """What a request must generate, whatever happens around it."""
    output: list[int] = []
    while len(output) < max_tokens and END not in output:
        output.append(next_token((*prompt, *output)))
    return output


@dataclasses.dataclass
class InFlight:
    """A dispatched step: its rows and the tokens that they sampled, after each draft too."""

    rows: list[ScheduledRow]
    token_ids: list[list[int]]

    @property
    def has_drafts(self) -> bool:
        return any(row.drafts for row in self.rows)


class Guesser:
    """Drafts the right tokens up to a place that is drawn, and wrong ones from there on."""

    def __init__(self, prompt: tuple[int, ...], rng: random.Random):
        self._prompt = prompt
        self._rng = rng

    def propose(self, token_ids, num_pending, most):
        context = list(token_ids)
        for _ in range(num_pending + most):
            context.append(next_token(tuple(context)))
        first, last = len(token_ids) + num_pending, len(context)
        for i in range(self._rng.randint(first, last), last):
            context[i] = (context[i] + 1) % NUM_TOKENS
        return tuple(context[first : first + self._rng.randint(0, most)])

    def judge(self, num_accepted):
        pass


class Simulation:
    """Scheduler and simulated device, stepped as LLMEngine.step does."""

    def __init__(
        self,
        num_pages=12,
        *,
        page_size=2,
        max_num_seqs=3,
        budget=8,
        use_cache=True,
        use_drafts=False,
        windows=(None,),
        window_pages=None,
    ):
        self.windows, self.page_size = windows, page_size
        groups = [
            CacheGroup(w, num_pages if w is None or window_pages is None else window_pages)
            for w in windows
        ]
        cache = CacheManager(groups, page_size, budget, use_prefix_cache=use_cache)
        self._rng = random.Random(0) if use_drafts else None
        self.num_accepted = 0
        self.scheduler = Scheduler(cache, max_num_seqs=max_num_seqs, max_num_batched_tokens=budget)
        self.longest = (num_pages - 1) * page_size
        self.live: list[Sequence] = []
        self.outputs: dict[str, list[int]] = {}
        self.rows: list[ScheduledRow] = []
        self._in_flight: InFlight | None = None
        self._arrivals = 0
        # Cache group, slot in the cache -> salt and context.
        self._cache: dict[tuple[int, int], tuple] = {}
        self._tokens: dict[tuple[int, int], int] = {}  # per-request slot, position -> token

    def add(self, prompt, max_tokens=4, *, salt="", priority=0) -> Sequence:
        request = GenerationRequest(
            f"{self._arrivals}", tuple(prompt), cache_salt=salt, priority=priority
        )
        room = self.longest - len(request.prompt_token_ids)
        order = priority, self._arrivals
        sequence = Sequence(request, order=order, max_tokens=min(max_tokens, room))
        if self._rng is not None:
            sequence.drafter = Guesser(tuple(prompt), self._rng)
        self._arrivals += 1
        self.live.append(sequence)
        self.scheduler.add(sequence)
        return sequence

    def abort(self, sequence: Sequence) -> None:
        self.live.remove(sequence)
        self.scheduler.finish(sequence)

    def step(self) -> None:
        collected, self._in_flight = self._in_flight, None
        if collected is not None and collected.has_drafts:
            self._collect(collected)
        self.rows = self._schedule()
        if self.rows:
            self._in_flight = self._dispatch(self.rows)
        if collected is not None and not collected.has_drafts:
            self._collect(collected)
        self.scheduler.check()

    def retract(self) -> None:
        """The mask of the latest row's next token is late: what was sampled does not count."""
        rows = self._in_flight.rows if self._in_flight and not self._rng else []
        for row in rows[-1:]:  # those with a grammar have no drafts
            if row.samples and not row.sequence.is_finished and not row.sequence.num_dropped:
                self.scheduler.retract(row.sequence)
        self.scheduler.check()

    def fail(self) -> None:
        """A step fails: what it and the one in flight held ends, and the cache is lost."""
        collected, self._in_flight = self._in_flight, None
        rows = [*(collected.rows if collected else ()), *self.scheduler.schedule()]
        for sequence in {row.sequence: None for row in rows if not row.sequence.is_finished}:
            self.abort(sequence)
        self.scheduler.reset()
        for sequence in self.live:
            sequence.restart()
            self.scheduler.add(sequence)
        self._cache.clear()
        self._tokens.clear()
        self.scheduler.check()

    def run(self) -> None:
        """Steps until everything has ended."""
        limit = 100 + 20 * sum(s.num_prompt_tokens + s.max_tokens for s in self.live)
        while self.live:
            self.step()
            limit -= 1
            assert limit, "requests do not end"
        self.step()
        assert all(pool.num_free == pool.capacity for pool in self.scheduler.cache.pools)

    def _schedule(self) -> list[ScheduledRow]:
        scheduler = self.scheduler
        before = list(scheduler.running)
        wanted = {s: s.num_wanted for s in before}
        num_preemptions = scheduler.stats.num_preemptions
        rows = scheduler.schedule()
        preempted = scheduler.stats.num_preemptions > num_preemptions
        assert len(rows) <= scheduler.max_num_seqs
        assert len({row.sequence for row in rows}) == len(rows)
        left = scheduler.max_num_batched_tokens - sum(row.count for row in rows)
        assert left >= 0
        num_drafted = sum(len(row.drafts) for row in rows)
        most = min(scheduler.max_num_seqs, scheduler.max_num_batched_tokens)
        assert not num_drafted or len(rows) + num_drafted <= most
        has_row = {row.sequence: row.count for row in rows}
        assert all(count > 0 for count in has_row.values())
        # The earliest makes progress, unless its last token is in flight already.
        if before:
            assert before[0] in has_row or not wanted[before[0]] or (preempted and self.has_windows)
        elif scheduler.waiting:
            assert rows
        if left:
            unserved = [s for s in before if s.slot >= 0 and wanted[s] != has_row.get(s, 0)]
            assert not unserved, "tokens were left, and a running sequence wanted them"
        if left and not preempted and scheduler.waiting:
            pages = -(-scheduler.waiting[0].num_tokens // self.page_size)
            num_running = len(scheduler.running)
            num_free = min(pool.num_free for pool in scheduler.cache.pools)
            if not self.has_windows:  # some pages of windows are promised
                assert num_running == scheduler.max_num_seqs or pages + num_running > num_free
        return rows

    def _dispatch(self, rows: list[ScheduledRow]) -> InFlight:
        writes: dict[int, tuple] = {}
        contexts = [self._context(row) for row in rows]
        for row, context in zip(rows, contexts, strict=True):
            salt = row.sequence.request.cache_salt
            for position in range(row.start, row.start + row.num_tokens):
                for g in range(len(self.windows)):
                    at = self._place(row.sequence, g, position)
                    assert at not in writes, "two tokens of a step have one place"
                    writes[at] = salt, context[: position + 1]
                self._tokens[row.sequence.slot, position] = context[position]
        self._cache.update(writes)
        token_ids = []
        for row, context in zip(rows, contexts, strict=True):
            salt = row.sequence.request.cache_salt
            for g, window in enumerate(self.windows):
                seen_from = 0 if window is None else max(row.start - window + 1, 0)
                for position in range(seen_from, len(context)):
                    found = self._cache.get(self._place(row.sequence, g, position))
                    assert found == (salt, context[: position + 1])
            ends = range(row.start + row.count, len(context) + 1)
            token_ids.append([next_token(context[:end]) for end in ends])
            for end, token_id in zip(ends, token_ids[-1] if row.samples else (), strict=False):
                self._tokens[row.sequence.slot, end] = token_id
        return InFlight(rows, token_ids)

    def _context(self, row: ScheduledRow) -> tuple[int, ...]:
        """The row's tokens up to its end, drafts last; one in flight is read from the device."""
        sequence, end = row.sequence, row.start + row.count
        known = sequence.token_ids[:end]
        assert end - len(known) <= 1
        pending = [self._tokens[sequence.slot, i] for i in range(len(known), end)]
        context = (*known, *pending)
        num_prompt = sequence.num_prompt_tokens
        output = expected_output(sequence.request.prompt_token_ids, end - num_prompt)
        if END not in output[:-1]:
            assert context[num_prompt:] == tuple(output)
        return context + row.drafts

    @property
    def has_windows(self) -> bool:
        return self.windows != (None,)

    def _place(self, sequence: Sequence, group: int, position: int) -> tuple[int, int]:
        page = sequence.pages[group][position // self.page_size]
        assert page > 0
        return group, page * self.page_size + position % self.page_size

    def _collect(self, step: InFlight) -> None:
        for row, token_ids in zip(step.rows, step.token_ids, strict=True):
            if not row.samples or row.sequence.is_finished:
                continue
            if row.sequence.num_dropped:
                row.sequence.num_dropped -= 1
            else:
                self._take(row, token_ids)

    def _take(self, row: ScheduledRow, token_ids: list[int]) -> None:
        sequence = row.sequence
        for token_id, draft in zip(token_ids, [*row.drafts, None], strict=True):
            self.scheduler.record(sequence, token_id)
            if token_id == END or sequence.num_output_tokens >= sequence.max_tokens:
                self.abort(sequence)
                prompt = sequence.request.prompt_token_ids
                output = sequence.token_ids[len(prompt) :]
                assert output == expected_output(prompt, sequence.max_tokens)
                self.outputs[sequence.request.request_id] = output
                return
            if token_id != draft:
                return
            self.scheduler.accept_draft(sequence)
            self.num_accepted += 1


def numbers(count: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(random.Random(seed).choices(range(1, NUM_TOKENS), k=count))


def long_lived(count: int, num_tokens: int) -> tuple[int, ...]:
    """A prompt whose output does not end by itself within num_tokens."""
    prompts = (numbers(count, seed) for seed in range(10_000))
    return next(p for p in prompts if END not in expected_output(p, num_tokens))


def counts(simulation: Simulation) -> list[int]:
    return [row.count for row in simulation.rows]


def test_decodes_come_before_prompts_and_prompts_are_cut_to_the_budget():
    s = Simulation(100, budget=8, max_num_seqs=4)
    s.add(long_lived(3, 20), 20)
    s.step()
    s.add(long_lived(13, 20), 20)
    s.add(numbers(5, 2), 5)
    seen = []
    for _ in range(3):
        s.step()
        seen.append([(row.start, row.count, row.samples) for row in s.rows])
    assert seen[0] == [(3, 1, True), (0, 7, False)]
    assert seen[1] == [(4, 1, True), (7, 6, True), (0, 1, False)]
    assert seen[2] == [(5, 1, True), (13, 1, True), (1, 4, True)]


def test_rows_are_limited_and_the_lowest_priority_number_goes_first():
    s = Simulation(100, budget=50, max_num_seqs=2)
    late, early, middle = (s.add(long_lived(3, 5), 5, priority=p) for p in (3, 1, 2))
    s.step()
    assert [row.sequence for row in s.rows] == [early, middle]
    assert late in s.scheduler.waiting
    s.run()


def test_the_latest_sequence_is_preempted_and_takes_its_pages_back_from_the_cache():
    s = Simulation(7, page_size=2, budget=16, max_num_seqs=2)  # 6 pages
    first, second = s.add(long_lived(6, 3), 3), s.add(long_lived(4, 6)[::-1], 6)
    s.step()
    assert counts(s) == [6, 4]
    s.step()  # the first takes the last free page, the second wants one more
    assert [(row.sequence, row.count) for row in s.rows] == [(first, 1)]
    assert (s.scheduler.waiting, second.pages, second.epoch) == ([second], [], 1)
    s.step()
    assert [row.sequence for row in s.rows] == [first]
    while first in s.live:
        s.step()
    s.step()
    # Its prompt's two pages are still there: only the token after them is computed.
    assert [(row.start, row.count, row.samples) for row in s.rows] == [(4, 1, True)]
    assert second.num_cached_tokens == 0  # a prompt's own pages are no hit
    assert s.scheduler.stats.num_preemptions == 1
    s.run()


def test_a_shared_prefix_is_computed_once_also_within_one_step():
    s = Simulation(100, page_size=4, budget=64, max_num_seqs=4)
    prompt = numbers(11)
    a, b = s.add(prompt), s.add(prompt)
    longer = s.add((*prompt, 1, 2, 3))
    salted = s.add(prompt, salt="x")
    s.step()
    # Two full pages of 11 tokens; the third page of the longer prompt has other tokens.
    assert [(row.start, row.count) for row in s.rows] == [(0, 11), (8, 3), (8, 6), (0, 11)]
    one, two, three, other = (s.pages[0] for s in (a, b, longer, salted))
    assert one[:2] == two[:2] == three[:2]
    assert len({one[2], two[2], three[2]}) == 3
    assert not set(other) & {*one, *two, *three}
    assert [x.num_cached_tokens for x in (a, b, longer, salted)] == [0, 8, 8, 0]
    stats = s.scheduler.stats
    assert (stats.prefix_queried_tokens, stats.prefix_hit_tokens) == (11 * 3 + 14, 16)
    s.run()


def test_the_last_token_is_computed_even_if_all_pages_are_known():
    s = Simulation(100, page_size=4, budget=64)
    s.add(numbers(8), 1)
    s.run()
    again = s.add(numbers(8), 1)
    s.step()
    assert again.num_cached_tokens == 4
    assert counts(s) == [4]


def test_generated_tokens_are_shared_too():
    s = Simulation(100, page_size=2, budget=64)
    prompt = long_lived(3, 8)
    first = s.add(prompt, 8)
    s.run()
    # Keys and values of the last token were never computed: tokens 0 to 9 fill 5 pages.
    again = s.add(first.token_ids, 1)
    s.step()
    assert again.num_cached_tokens == 10


def test_without_a_prefix_cache_nothing_is_shared():
    s = Simulation(100, page_size=2, budget=64, use_cache=False)
    a, b = s.add(numbers(9)), s.add(numbers(9))
    s.step()
    assert counts(s) == [9, 9]
    assert not set(a.pages[0]) & set(b.pages[0])
    assert s.scheduler.stats.prefix_queried_tokens == 0


def test_a_sequence_that_fills_the_whole_pool_ends():
    s = Simulation(5, page_size=2, budget=3)  # 8 tokens
    sequence = s.add(long_lived(3, 5), 100)
    assert sequence.max_tokens == 5
    s.run()


def test_reset_starts_everything_again_and_forgets_the_cache():
    s = Simulation(100, page_size=2, budget=6)
    s.add(long_lived(4, 9), 9)
    for _ in range(3):
        s.step()
    waiting = s.add(numbers(9, 3), 3)
    s.fail()
    assert waiting in s.live or waiting.is_finished
    again = s.add(long_lived(4, 9), 1)
    s.step()
    assert again.num_cached_tokens == 0
    s.run()


def test_reset_forgets_tokens_in_flight():
    s = Simulation(100)
    sequence = s.add(numbers(3))
    s.scheduler.schedule()
    assert sequence.num_sampled == 1
    s.scheduler.reset()
    sequence.restart()
    assert (sequence.num_sampled, sequence.num_computed, sequence.num_wanted) == (0, 0, 3)


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of arrivals, steps, aborts and failures, in pools that are nearly too small."""

    @initialize(
        num_pages=st.integers(3, 14),
        page_size=st.sampled_from([1, 2, 4]),
        max_num_seqs=st.integers(1, 4),
        budget=st.integers(1, 10),
        use_cache=st.sampled_from([True, True, True, False]),
        use_drafts=st.booleans(),
        windows=st.sampled_from([(None,), (None, 3), (None, 5, 1), (4,), (9, 2)]),
        spare=st.integers(0, 6),
    )
    def start(
        self, num_pages, page_size, max_num_seqs, budget, use_cache, use_drafts, windows, spare
    ):
        widest = max(window or 0 for window in windows)
        least = most_live_pages(widest, page_size, budget) if widest else 0
        self.s = Simulation(
            num_pages,
            page_size=page_size,
            max_num_seqs=max_num_seqs,
            budget=budget,
            use_cache=use_cache,
            use_drafts=use_drafts,
            windows=windows,
            window_pages=int(min(num_pages, 1 + least) + spare),
        )

    @rule(
        family=st.integers(0, 1),
        length=st.integers(1, 20),
        tail=st.lists(st.integers(0, NUM_TOKENS - 1), max_size=3),
        max_tokens=st.integers(1, 12),
        salt=st.sampled_from(["", "", "x"]),
        priority=st.sampled_from([0, 0, 1, -1]),
    )
    def add(self, family, length, tail, max_tokens, salt, priority):
        prompt = (*numbers(20, family)[:length], *tail)[: self.s.longest - 1]
        self.s.add(prompt, max_tokens, salt=salt, priority=priority)

    @rule(count=st.integers(1, 6))
    def steps(self, count):
        for _ in range(count):
            self.s.step()

    @precondition(lambda self: self.s.live)
    @rule(data=st.data())
    def abort(self, data):
        self.s.abort(data.draw(st.sampled_from(self.s.live)))

    @rule()
    def retract(self):
        self.s.retract()

    @rule(happens=st.integers(0, 9))
    def fail(self, happens):
        if happens == 0:
            self.s.fail()

    @invariant()
    def books_agree(self):
        if hasattr(self, "s"):
            self.s.scheduler.check()

    def teardown(self):
        if hasattr(self, "s"):
            self.s.run()


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = hypothesis.settings(
    max_examples=num_examples(150), stateful_step_count=30
)


@pytest.mark.parametrize("use_drafts", [False, True])
@pytest.mark.parametrize(
    ("windows", "window_pages", "preemptions", "hits"),
    [((None,), None, 50, 1000), ((None, 5), 11, 50, 500), ((8,), 11, 5, 500)],
)
def test_a_long_crowded_run_preempts_evicts_and_shares(
    windows, window_pages, preemptions, hits, use_drafts
):
    rng = random.Random(0)
    pages = {"windows": windows, "window_pages": window_pages}
    s = Simulation(14, page_size=2, max_num_seqs=5, budget=9, use_drafts=use_drafts, **pages)
    for _ in range(2500):
        if rng.random() < 0.4 and len(s.live) < 8:
            prompt = (*numbers(12, rng.randrange(3))[: rng.randint(1, 12)], rng.randrange(6))
            s.add(prompt, rng.randint(1, 12), salt=rng.choice(["", "x"]))
        elif rng.random() < 0.05 and s.live:
            s.abort(rng.choice(s.live))
        s.step()
    s.run()
    stats = s.scheduler.stats
    assert stats.num_preemptions > preemptions
    assert stats.prefix_hit_tokens > hits
    assert len(s.outputs) > 400
    assert (s.num_accepted > 100) == use_drafts
