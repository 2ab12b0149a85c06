"""Drafts change nothing but how many tokens a step brings."""

from __future__ import annotations

import collections
import dataclasses
import random
import re

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from rtpjax.config import DraftConfig, EngineSettings, resolve
from rtpjax.engine import engine as engine_module
from rtpjax.engine.drafts import Drafter, DraftStats
from rtpjax.engine.request import GenerationRequest, Grammar
from rtpjax.errors import ConfigError
from tests.e2e import byte_model
from tests.examples import num_examples
from tests.rtpjax.engine import tiny

DRAFTS = DraftConfig(num_tokens=3, min_match=1, max_match=3)
REPEATING = (5, 6, 7, 8, 9, 5, 6, 7, 8, 9, 5, 6)


def propose(token_ids, *, pending=0, most=9, least=2, longest=3, count=4):
    return Drafter(DraftConfig(count, least, longest)).propose(list(token_ids), pending, most)


@pytest.mark.parametrize(
    ("context", "options", "drafts"),
    [
        ((1, 2, 3, 4, 1, 2), {}, (3, 4, 1, 2)),
        ((1, 2, 3, 4, 1, 2), {"most": 1}, (3,)),
        ((1, 2, 3, 4, 1, 2), {"pending": 1}, (4, 1, 2, 3)),  # 3 is in flight
        ((1, 2, 3, 1, 2, 4, 1, 2), {}, (4, 1, 2, 4)),  # the latest of the longest
        ((9, 1, 2, 3, 8, 1, 2, 4, 9, 1, 2), {}, (3, 8, 1, 2)),  # a longer one goes before a later
        ((7, 7, 7), {}, (7, 7, 7, 7)),  # it runs into its own end
        ((1, 2, 3, 4), {}, ()),
        ((2, 5, 3, 2), {}, ()),  # one token is no match of two
        ((2, 5, 3, 2), {"least": 1}, (5, 3, 2, 5)),
        ((4,), {"least": 1}, ()),
    ],
)
def test_what_followed_is_proposed(context, options, drafts):
    assert propose(context, **options) == drafts


@hypothesis.given(
    st.lists(st.integers(0, 3), min_size=1, max_size=40),
    st.integers(1, 3),
    st.integers(0, 2),
    st.integers(0, 1),
)
@hypothesis.settings(max_examples=num_examples(100))
def test_proposals_are_those_of_a_plain_search(ids, least, more, pending):
    longest, expected = least + more, ()
    for length in range(longest, least - 1, -1):
        ends = [i for i in range(length, len(ids)) if ids[i - length : i] == ids[-length:]]
        if ends:
            follows = list(ids)
            for i in range(4 + pending):
                follows.append(follows[ends[-1] + i])
            expected = tuple(follows[len(ids) + pending :])
            break
    assert propose(ids, least=least, longest=longest, pending=pending) == expected


def test_a_context_that_grows_is_read_on():
    drafter = Drafter(DraftConfig(2, 2, 2))
    ids = []
    for token_id in random.Random(0).choices(range(3), k=300):
        ids.append(token_id)
        assert drafter.propose(ids, 0, 2) == propose(ids, longest=2, count=2)


def test_who_is_always_wrong_pauses_longer_and_longer():
    drafter, pauses = Drafter(DraftConfig(1, 1, 1)), []
    for num_accepted in (0, 0, 0, 0, 0, 0, 0, 1, 0, 0):
        pauses.append(0)
        while not drafter.propose([1, 1], 0, 1):
            pauses[-1] += 1
        drafter.judge(num_accepted)
    assert pauses == [0, 2, 4, 8, 16, 32, 32, 32, 0, 2]


@pytest.mark.parametrize("fields", [(0, 2, 2), (1, 0, 2), (1, 3, 2)])
def test_settings_that_mean_nothing_are_refused(fields):
    with pytest.raises(ConfigError, match="at least 1"):
        DraftConfig(*fields)


def test_a_quantized_cache_is_refused():
    settings = EngineSettings(drafts=DRAFTS, kv_cache_dtype="int8")
    with pytest.raises(ConfigError, match="quantized cache"):
        resolve(settings, tiny.MODEL, (), platform="cpu")


def drafting(runner, **settings) -> tiny.CheckedEngine:
    return tiny.make_engine(runner, drafts=DRAFTS, **settings)


class Oracle:
    """Proposes tokens that it was told, by the beginning of the context."""

    def __init__(self, answers: dict[tuple[int, ...], list[int]], change: int):
        self._answers = answers
        self._change = change

    def __call__(self, config: DraftConfig) -> Oracle:
        return self

    def propose(self, token_ids, num_pending, most):
        prompt = next(p for p in self._answers if tuple(token_ids[: len(p)]) == p)
        at = len(token_ids) - len(prompt) + num_pending
        right = self._answers[prompt][at : at + min(most, DRAFTS.num_tokens)]
        return tuple((token_id + self._change) % tiny.NUM_TOKENS for token_id in right)

    def judge(self, num_accepted):
        pass


PROMPTS = [tiny.prompt(n, n) for n in (1, 5, 30, 17)]


def told(monkeypatch, runner, sampling, change: int, prompts=PROMPTS) -> list[list[int]]:
    """What the prompts' answers are without drafts; engines to come get them as drafts."""
    runner.reset()
    expected = tiny.generate(tiny.make_engine(runner), prompts, sampling)
    oracle = Oracle(dict(zip(prompts, expected, strict=True)), change)
    monkeypatch.setattr(engine_module, "Drafter", oracle)
    runner.reset()
    return expected


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("change", [0, 1])
def test_right_and_wrong_drafts_bring_the_same_tokens(runner, monkeypatch, change, temperature):
    sampling = [tiny.params(temperature=temperature, seed=i, max_tokens=13) for i in range(4)]
    expected = told(monkeypatch, runner, sampling, change)
    engine = drafting(runner)
    for prompt, tokens, each in zip(PROMPTS, expected, sampling, strict=True):
        [outputs] = engine.generate([prompt], each)
        tiny.assert_ends_once(outputs)
        assert tiny.tokens_of(outputs) == tokens
        # The step of a prompt of several tokens brings one; the others three and one if they can.
        right = [4, 4, 4, 1] if len(prompt) == 1 else [1, 4, 4, 4]
        sizes = right if change == 0 else [1] * 13
        assert [len(output.token_ids) for output in outputs] == sizes
    stats = engine.stats()
    accepted = stats.accepted_by_position
    assert accepted == ((12, 12, 12) if change == 0 else (0, 0, 0))
    assert stats.num_draft_tokens == (36 if change == 0 else stats.num_draft_tokens)
    assert stats.num_output_tokens == 4 * 13
    assert runner.num_recompiles == 0


OPTIONS = [
    {"logprobs": 3},
    {"repetition_penalty": 1.3, "frequency_penalty": 0.4},
    {"no_repeat_ngram_size": 2},
    {"logit_bias": ((50, 4.0), (60, 5.0)), "min_tokens": 6},
    {"bad_words": ((60,), (61, 62))},
    {"temperature": 0.9, "seed": 3, "top_p": 0.9},
    {"temperature": 0.7, "seed": 4, "top_k": 5, "presence_penalty": 0.5},
    {"prompt_logprobs": 2},
    {"stop_token_ids": (70,), "ignore_eos": False},
    {"max_tokens": 2},
]


@pytest.mark.parametrize("change", [0, 1])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "+".join(options))
def test_options_are_followed_token_by_token(runner, monkeypatch, options, change):
    sampling = tiny.params(**{"max_tokens": 14} | options)
    told(monkeypatch, runner, sampling, change)
    plain = tiny.make_engine(runner).generate(PROMPTS, sampling)
    runner.reset()
    drafted = drafting(runner).generate(PROMPTS, sampling)
    for one, other in zip(plain, drafted, strict=True):
        assert tiny.tokens_of(one) == tiny.tokens_of(other)
        assert "".join(o.text for o in one) == "".join(o.text for o in other)
        assert (one[-1].finish_reason, one[-1].stop_reason) == (
            other[-1].finish_reason,
            other[-1].stop_reason,
        )
        for name in ("logprobs", "prompt_logprobs"):
            pairs = [[x for o in each for x in getattr(o, name) or ()] for each in (one, other)]
            assert pairs[0] == pairs[1]


@pytest.mark.parametrize("stop_at", range(1, 9))
def test_stops_and_ends_inside_of_an_accepted_run(runner, monkeypatch, stop_at):
    [[*expected], *_] = told(monkeypatch, runner, tiny.params(max_tokens=12), 0)
    word = f" {expected[stop_at]}"
    first = next(i for i, token_id in enumerate(expected) if f" {token_id}".startswith(word))
    [outputs] = drafting(runner).generate([PROMPTS[0]], tiny.params(max_tokens=12, stop=(word,)))
    assert outputs[-1].finish_reason == "stop" and outputs[-1].stop_reason == word
    assert "".join(o.text for o in outputs) == tiny.text_of(expected[:first])
    assert tiny.tokens_of(outputs) == expected[: first + 1]
    [limited] = drafting(runner).generate([PROMPTS[0]], tiny.params(max_tokens=stop_at))
    assert tiny.tokens_of(limited) == expected[:stop_at]
    assert limited[-1].finish_reason == "length"


@pytest.mark.parametrize("seed", range(num_examples(8)))
def test_a_crowd_with_drafts_says_what_it_says_without(runner, seed):
    """Real lookups, few pages (preemptions), prompts of many lengths, greedy and not."""
    rng = random.Random(seed)
    prompts, sampling = [], []
    for i in range(12):
        piece = tiny.prompt(rng.randint(1, 6), i)
        prompts.append((piece * 9)[: rng.randint(1, 40)])
        options = rng.choice([*OPTIONS, {}, {}, {"temperature": 1.2, "seed": i}])
        sampling.append(tiny.params(**{"max_tokens": rng.randint(1, 24)} | options))
    few = {"num_pages": rng.choice([18, 25, 1000]), "max_num_batched_tokens": rng.choice([5, 32])}
    few["use_prefix_cache"] = rng.random() < 0.7
    runner.reset()
    expected = tiny.generate(tiny.make_engine(runner, **few), prompts, sampling)
    runner.reset()
    engine = drafting(runner, **few)
    assert tiny.generate(engine, prompts, sampling) == expected
    assert engine.stats().num_drafts > 0


def test_requests_and_full_batches_do_without(runner):
    engine = drafting(runner)
    request = GenerationRequest("r", REPEATING, tiny.params(max_tokens=20), use_drafts=False)
    engine.add(request)
    tiny.run(engine)
    assert engine.stats().num_drafts == 0
    most = drafting(runner, max_num_seqs=2)
    for i in range(2):
        tiny.add(most, str(i), (i + 5, *REPEATING), max_tokens=20)
    tiny.run(most)
    assert most.stats().num_drafts == 0  # the rows take all there is
    one = drafting(runner)
    tiny.add(one, "r", REPEATING, max_tokens=20)
    tiny.run(one)
    assert one.stats().num_drafts > 0


def test_draws_have_the_models_distribution(runner, monkeypatch):
    """Chi-square of drafted draws against draws without drafts, of a few likely tokens."""
    allowed = (10, 11, 12, 13)

    def sampling(seed):
        return tiny.params(temperature=1.0, seed=seed, max_tokens=4, allowed_token_ids=allowed)

    class Guess(Oracle):
        def propose(self, token_ids, num_pending, most):
            return (10, 11, 12)[: min(most, 3)]

    monkeypatch.setattr(engine_module, "Drafter", Guess({}, 0))
    counts = [collections.Counter(), collections.Counter()]
    for which, count in enumerate(counts):
        runner.reset()
        engine = drafting(runner) if which else tiny.make_engine(runner)
        for seed in range(which, 4 * num_examples(40), 2):  # two at a time leave room for drafts
            params = [sampling(2 * seed), sampling(2 * seed + 1)]
            count.update(tuple(each[:2]) for each in tiny.generate(engine, [(5, 6)] * 2, params))
        stats = engine.stats()
    assert 0 < sum(stats.accepted_by_position) < stats.num_draft_tokens
    pairs = sorted(counts[0] | counts[1])
    drawn = np.array([[count[pair] for pair in pairs] for count in counts], float)
    expected = drawn.sum(0) / 2
    chi_square = ((drawn - expected) ** 2 / expected).sum()
    assert chi_square < len(pairs) + 6 * np.sqrt(2 * len(pairs))


def test_counts_are_by_position():
    stats = DraftStats.of(DRAFTS)
    for drafted, accepted in ((3, 3), (3, 1), (2, 0)):
        stats.count(drafted, accepted)
    assert stats == DraftStats(3, 8, (2, 1, 1))
    assert DraftStats.of(None).accepted_by_position == ()


DIGITS = Grammar("regex", "[0-9]{9,14}")


@pytest.mark.parametrize("change", [0, 1])
def test_grammars_go_token_by_token(monkeypatch, change):
    """Under a mask nothing is drafted; text that comes before may be, up to where it begins."""
    runner = byte_model.runner()

    def answers(drafts):
        runner.reset()
        config = dataclasses.replace(runner.config, drafts=drafts)
        engine = tiny.CheckedEngine(runner, config, byte_model.tokenizer(), [byte_model.end_id()])
        outputs = engine.generate(prompts, sampling, grammars)
        return [tiny.tokens_of(each) for each in outputs], engine.stats()

    prompts = [byte_model.encode(f"prompt {i}") for i in range(3)]
    bias = ((byte_model.token_id("e"), 3.0),)
    sampling = [
        tiny.params(temperature=1.0, seed=i, max_tokens=60, logit_bias=bias, ignore_eos=False)
        for i in range(3)
    ]
    grammars = [DIGITS, dataclasses.replace(DIGITS, after="e"), None]
    expected, _ = answers(None)
    oracle = Oracle(dict(zip(prompts, expected, strict=True)), change)
    monkeypatch.setattr(engine_module, "Drafter", oracle)
    found, stats = answers(DRAFTS)
    assert found == expected
    text = byte_model.tokenizer().decode(expected[1], skip_special_tokens=True)
    assert re.search("e[0-9]{9,14}$", text), text
    assert (sum(stats.accepted_by_position) > 0) == (change == 0)
