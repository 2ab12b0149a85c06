"""Which dp group a request goes to; that the books agree under random operations."""

from __future__ import annotations

import random

from rtpjax.engine.cache_groups import CacheGroup
from rtpjax.engine.cache_manager import CacheManager
from rtpjax.engine.groups import Groups
from rtpjax.engine.request import GenerationRequest, SamplingParams
from rtpjax.engine.scheduler import Scheduler
from rtpjax.engine.sequence import Sequence
from tests.rtpjax.engine import tiny

PAGE_SIZE = 4


def groups(count: int, *, num_pages: int = 400, max_num_seqs: int = 8) -> Groups:
    return Groups(
        Scheduler(
            CacheManager([CacheGroup(None, num_pages)], PAGE_SIZE, 32),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=32,
        )
        for _ in range(count)
    )


def sequence(prompt: tuple[int, ...], order: int = 0, max_tokens: int = 12) -> Sequence:
    request = GenerationRequest(str(order), prompt, SamplingParams())
    return Sequence(request, order=(0, order), max_tokens=max_tokens)


def added(to: Groups, prompt: tuple[int, ...], order: int = 0) -> Sequence:
    made = sequence(prompt, order)
    to.add(made)
    to.check()
    return made


def run(all_groups: Groups) -> None:
    """Until all have what they want."""
    while any(all_groups.schedule()):
        for s in all_groups.running:
            while s.num_output_tokens < s.num_sampled:
                all_groups.of(s).record(s, 7)
            if s.num_output_tokens == s.max_tokens:
                all_groups.finish(s)
        all_groups.check()


def test_strangers_go_to_the_least_loaded():
    three = groups(3)
    assert [added(three, tiny.prompt(40, i), i).group for i in range(6)] == [0, 1, 2, 0, 1, 2]


def test_choices_of_a_prompt_stay_together_before_and_after_it_is_computed():
    two = groups(2)
    prompt = tiny.prompt(80)
    assert [added(two, prompt, i).group for i in range(4)] == [0, 0, 0, 0]
    assert added(two, tiny.prompt(80, 1), 4).group == 1
    run(two)
    other = added(two, tiny.prompt(80, 1), 5)
    assert other.group == 1
    assert added(two, (*prompt, 9), 6).group == 0


def test_a_common_prefix_does_not_draw_everyone_to_one_group():
    two = groups(2, max_num_seqs=100)
    prompt = tiny.prompt(40)
    where = [added(two, (*prompt, i), i).group for i in range(40)]
    # It is worth as much as 10 live requests; from then on they alternate.
    assert where[:9] == [0] * 9
    assert 14 <= where.count(1) <= 20


def test_a_full_group_comes_last():
    two = groups(2, max_num_seqs=2)
    prompt = tiny.prompt(80)
    assert [added(two, prompt, i).group for i in range(4)] == [0, 0, 1, 1]


def test_random_operations_keep_the_books():
    rng = random.Random(0)
    three = groups(3, num_pages=15, max_num_seqs=3)
    live: list[Sequence] = []
    for order in range(400):
        if rng.random() < 0.3:
            prompt = tiny.prompt(rng.randint(1, 30), rng.randint(0, 3))
            live.append(added(three, prompt, order))
        elif live and rng.random() < 0.2:
            three.finish(live.pop(rng.randrange(len(live))))
        else:
            rows = [row for group in three.schedule() for row in group]
            for row in rows:
                if row.samples:
                    three.of(row.sequence).record(row.sequence, rng.randint(3, 99))
            for s in [s for s in live if s.num_output_tokens >= s.max_tokens]:
                live.remove(s)
                three.finish(s)
        three.check()
    assert three.stats.num_preemptions > 0
    assert three.stats.prefix_hit_tokens > 0
