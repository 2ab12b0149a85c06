"""Models with windows give back pages while they run, and say what they say with all pages.

The truth is the same model over pages that are never given back (PagedRun), which the golden tests
hold to transformers. Pages that no sequence owns are filled with NaN between steps.
"""

from __future__ import annotations

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtpjax.engine.cache_groups import CacheGroup
from rtpjax.engine.kv_cache import windows_of
from rtpjax.engine.runner import Runner
from rtpjax.models import ModelConfig
from tests.golden import cases, make_golden
from tests.rtpjax.engine import tiny
from tests.rtpjax.models.paged_run import PagedRun, golden_model

# Windows of 6 tokens over pages of 4: all layers, and three of four.
MODELS = {"gemma3": (None, 6), "mistral": (6,)}
CASES = ["gemma3", pytest.param("mistral", marks=pytest.mark.slow)]
LENGTH, NEW = 37, 14


@cache
def runner(case: str) -> Runner:
    model = ModelConfig.from_hf(cases.CASES[case].config)
    groups = tuple(CacheGroup(window, 80) for window in MODELS[case])
    config = dataclasses.replace(tiny.CONFIG, cache_groups=groups, max_num_seqs=2)
    return tiny.make_runner(config, model, num_tokens=model.vocab_size)


def prompt(seed: int, length: int = LENGTH) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(3, 64, length).tolist())


@cache
def expected(case: str, seed: int, length: int = LENGTH) -> list[int]:
    """Greedy tokens of the model over all of its pages."""
    run = PagedRun(golden_model(case), num_rows=1, max_len=LENGTH + NEW)
    (logits,) = run.step([np.asarray(prompt(seed, length), np.int32)], "extend")
    tokens = [int(logits[-1].argmax())]
    while len(tokens) < NEW:
        (logits,) = run.step([np.asarray(tokens[-1:], np.int32)], "decode")
        tokens.append(int(logits[-1].argmax()))
    return tokens


class PoisonedEngine(tiny.CheckedEngine):
    """After each step, pages that no sequence owns and no prefix can be found in hold NaN."""

    def step(self):
        outputs = super().step()
        (scheduler,), caches = self._groups.schedulers, self._runner._caches
        masks = [np.ones(num_pages, bool) for num_pages in caches.layout.num_pages]
        for g, (mask, pool) in enumerate(zip(masks, scheduler.cache.pools, strict=True)):
            mask[list(pool._name_of)] = False
            for sequence in scheduler.running:
                mask[sequence.pages[g]] = False
            mask[0] = True
        arrays = []
        for i, array in enumerate(caches.arrays):
            places = [place for place in caches.layout.places if place.array == i]
            mask = np.concatenate([masks[place.group] for place in places])
            arrays.append(jax.tree.map(partial(_poisoned, mask), array))
        self._runner._caches = dataclasses.replace(caches, arrays=tuple(arrays))
        return outputs


@partial(jax.jit, donate_argnums=1)
def _poisoned(mask, pages):
    return jnp.where(mask[:, None, None, None], jnp.nan, pages)


def engine(case: str, *num_pages: int, **settings) -> PoisonedEngine:
    """A fresh engine; num_pages of each cache group, where they are not plenty."""
    runner(case).reset()
    config = runner(case).config
    if num_pages:
        # The arrays keep their sizes: only fewer of their pages are handed out.
        groups = zip(MODELS[case], num_pages, strict=True)
        settings["cache_groups"] = tuple(CacheGroup(*group) for group in groups)
    config = dataclasses.replace(config, **settings)
    return PoisonedEngine(runner(case), config, tiny.tokenizer(), [tiny.END])


PARAMS = tiny.params(max_tokens=NEW)


def test_layers_of_one_window_are_a_group():
    for case, windows in MODELS.items():
        assert windows_of(golden_model(case).cache_specs()) == windows


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_prefix_cache", [True, False])
def test_alone_in_a_crowd_and_after_a_prefix_hit(case, use_prefix_cache):
    one = engine(case, use_prefix_cache=use_prefix_cache)
    assert tiny.generate(one, [prompt(0)], PARAMS) == [expected(case, 0)]
    crowd = [(seed, length) for seed in range(4) for length in (LENGTH, 5, 6, 7, 24)]
    again = tiny.generate(one, [prompt(*each) for each in crowd], PARAMS)
    assert again == [expected(case, *each) for each in crowd]
    stats = one.stats()
    assert (stats.prefix_hit_tokens >= 36) == use_prefix_cache
    assert stats.num_free_pages == stats.num_pages


@pytest.mark.parametrize("case", CASES)
def test_every_size_of_chunks(case):
    for size in (*range(1, 13), 31, 32):
        chunked = engine(case, max_num_batched_tokens=size, use_prefix_cache=False)
        assert tiny.generate(chunked, [prompt(0)], PARAMS) == [expected(case, 0)], size


@pytest.mark.parametrize(
    ("case", "pages", "length"),
    [("gemma3", (22, 20), LENGTH), pytest.param("mistral", (6,), 5, marks=pytest.mark.slow)],
)
def test_after_preemption(case, pages, length):
    """Too few pages of the widest group for two: those that come back find their windows."""
    crowded = engine(case, *pages, max_num_batched_tokens=12)
    tokens = tiny.generate(crowded, [prompt(seed, length) for seed in range(4)], PARAMS)
    assert tokens == [expected(case, seed, length) for seed in range(4)]
    assert crowded.stats().num_preemptions > 0


@pytest.mark.parametrize("case", CASES)
def test_after_tokens_that_did_not_count(case):
    """As where a grammar's mask is late: each token is computed twice, over the same window."""
    late = engine(case)
    tiny.add(late, "r", prompt(0), max_tokens=NEW)
    outputs, steps = [], 0
    while late.has_work:
        outputs += late.step()
        steps += 1
        for sequence in late._groups.running:
            is_in_flight = sequence.num_sampled > sequence.num_output_tokens
            if steps % 2 and is_in_flight and not sequence.num_dropped:
                late._groups.of(sequence).retract(sequence)
    assert tiny.tokens_of(outputs) == expected(case, 0)
    assert steps > 1.4 * NEW


@pytest.mark.parametrize("case", CASES)
def test_a_long_context_holds_the_pages_of_its_window(case):
    one = engine(case, use_prefix_cache=False)
    tiny.add(one, "r", prompt(0), max_tokens=NEW)
    while one.has_work:
        one.step()
        for sequence in one._groups.running:
            held = [sum(page > 0 for page in pages) for pages in sequence.pages]
    assert len(held) == len(MODELS[case])
    assert held[-1] <= 3
    assert MODELS[case][0] is not None or held[0] >= 12


@pytest.mark.parametrize("case", CASES)
@pytest.mark.reference
def test_what_transformers_generates(case):
    torch = pytest.importorskip("torch")
    model = make_golden.reference_model(case)
    ids = torch.tensor([prompt(0)])
    out = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    assert out[0, LENGTH:].tolist() == expected(case, 0)
