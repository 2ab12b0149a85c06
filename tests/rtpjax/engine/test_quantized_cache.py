"""Engines whose cache is int8 or fp8, beside the one whose cache is float32."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rtpjax.engine.runner import Runner
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.tiny import generate, params, prompt

FORMATS = {"int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
# Mean difference of a log-probability. The model is random and sharp, so that rounding shows; that
# it is rounding and nothing else is what tests/rtpjax/models/test_quantized_cache.py says.
MOST_OFF = {"int8": 0.05, "fp8": 0.25}
LEAST_SAME = {"int8": 0.9, "fp8": 0.75}  # part of the prompts' tokens with the same best successor
PROMPTS = [prompt(n, seed) for seed, n in enumerate((1, 3, 4, 17, 32, 33, 45, 50))]


def make_runner(format_name: str, **settings) -> Runner:
    precision = dataclasses.replace(tiny.FP32, cache=FORMATS[format_name])
    small = {"num_pages": 1 + 2 * 16, "max_num_batched_tokens": 16, "precision": precision}
    return tiny.make_runner(tiny.changed(tiny.CONFIG, **(small | settings)))


@pytest.fixture(scope="module", params=FORMATS)
def quantized(request) -> tuple[str, Runner]:
    return request.param, make_runner(request.param)


@pytest.fixture(scope="module")
def plain(compiled):
    """Tokens and log-probabilities of a request that runs alone on a float32 cache."""
    return tiny.make_engine(compiled, use_prefix_cache=False)


def scores(engine) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of the prompts' tokens, and the best tokens in their place."""
    results = engine.generate(PROMPTS, params(prompt_logprobs=1, max_tokens=1))
    entries = [entry for outputs in results for entry in outputs[0].prompt_logprobs[1:]]
    return np.array([e.logprob for e in entries]), np.array([e.top[0][0] for e in entries])


def agreement(found: list[list[int]], wanted: list[list[int]]) -> float:
    """The part of the tokens before the first that differs."""
    same = [np.cumprod(np.equal(f, w)).sum() for f, w in zip(found, wanted, strict=True)]
    return sum(same) / sum(map(len, wanted))


def test_log_probabilities_and_greedy_tokens_are_near_those_of_a_float_cache(quantized, plain):
    name, runner = quantized
    (found, best), (wanted, wanted_best) = scores(tiny.make_engine(runner)), scores(plain)
    off = np.abs(found - wanted)
    assert MOST_OFF[name] / 50 < off.mean() < MOST_OFF[name]
    assert (best == wanted_best).mean() > LEAST_SAME[name]


def test_chunks_a_shared_prefix_and_preemption_leave_first_tokens_as_they_are(quantized, plain):
    """Later ones follow other tokens once one differs."""
    name, runner = quantized
    prompts = PROMPTS + [(*PROMPTS[-1][:40], *prompt(5, n)) for n in range(4)]
    engine = tiny.make_engine(runner, num_pages=1 + 18)
    each = [params(max_tokens=14)] * len(prompts)
    found = generate(engine, prompts, each)
    stats = engine.stats()
    assert stats.num_preemptions > 0
    assert stats.prefix_hit_tokens >= 40
    firsts = [tokens[:2] for tokens in found]
    wanted = [tokens[:2] for tokens in generate(plain, prompts, each)]
    assert agreement(firsts, wanted) > LEAST_SAME[name] - 0.1
    assert runner.num_recompiles == 0


def test_caches_stay_where_they_are(quantized):
    """What a step returns is what it was given, updated in place: pages and scales."""
    _, runner = quantized
    engine = tiny.make_engine(runner)
    before = pointers(runner)
    generate(engine, PROMPTS[:2])
    assert pointers(runner) == before
    assert runner._caches.arrays[0].k_scales.any()


def test_no_program_copies_what_all_layers_share(quantized):
    """XLA does where it cannot see that a layer has read before the next one writes."""
    _, runner = quantized
    assert not tiny.copied_caches(runner)


def pointers(runner: Runner) -> list[int]:
    arrays = [x for cache in runner._caches.arrays for x in cache]
    return [s.data.unsafe_buffer_pointer() for x in arrays for s in x.addressable_shards]


@pytest.mark.parametrize("quantized", ["int8"], indirect=True)  # formats do not differ in this
def test_two_devices_hold_half_of_the_heads_each_and_give_the_same_tokens(quantized):
    name, runner = quantized
    two = make_runner(name, tp_size=2, max_num_seqs=2)
    assert two._caches.arrays[0].k_scales.addressable_shards[0].data.shape == (2 * 33, 1)
    assert not tiny.copied_caches(two)
    before = pointers(two)
    found = generate(tiny.make_engine(two), PROMPTS[:4])
    assert pointers(two) == before
    one = generate(tiny.make_engine(runner, max_num_seqs=2), PROMPTS[:4])
    assert agreement(found, one) > 0.95
