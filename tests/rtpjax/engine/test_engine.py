from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from rtpjax.engine.request import GenerationRequest, SamplingParams
from rtpjax.errors import QueueFullError, RequestError
from tests.golden import cases
from tests.rtpjax.engine import tiny
from tests.rtpjax.engine.tiny import generate, params, prompt

PROMPTS = [prompt(n, seed) for seed, n in enumerate((1, 3, 4, 17, 32, 33, 45, 50))]


@pytest.fixture
def engine(runner):
    return tiny.make_engine(runner)


@pytest.fixture(scope="module")
def alone(compiled):
    """Tokens of a request that runs alone, nothing shared."""
    known = {}

    def tokens(prompt_token_ids, sampling=tiny.GREEDY) -> list[int]:
        key = tuple(prompt_token_ids), sampling
        if key not in known:
            engine = tiny.make_engine(compiled, use_prefix_cache=False)
            [known[key]] = generate(engine, [prompt_token_ids], sampling)
        return known[key]

    return tokens


@pytest.fixture(scope="module")
def reference():
    """The same model in transformers."""
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**tiny.HF_CONFIG)).eval()
    state = {k: torch.tensor(cases.weight(k, v.shape)) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    return model


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_greedy_tokens_are_those_of_transformers(engine, reference):
    import torch

    results = generate(engine, PROMPTS)
    for prompt_token_ids, tokens in zip(PROMPTS, results, strict=True):
        ids = torch.tensor([prompt_token_ids])
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            min_new_tokens=12,
            suppress_tokens=list(range(tiny.NUM_TOKENS, 320)),
        )[0, ids.shape[1] :].tolist()
        assert tokens == expected


@pytest.mark.reference
def test_logprobs_are_those_of_transformers(engine, reference):
    import torch

    [outputs] = engine.generate([PROMPTS[3]], params(logprobs=5, temperature=0.9, seed=1))
    tokens = tiny.tokens_of(outputs)
    with torch.no_grad():
        logits = reference(torch.tensor([[*PROMPTS[3], *tokens]])).logits[0, :, : tiny.NUM_TOKENS]
    expected = torch.log_softmax(logits[len(PROMPTS[3]) - 1 : -1].double(), -1).numpy()
    for output, token_id, row in zip(outputs, tokens, expected, strict=True):
        [found] = output.logprobs
        best = np.argsort(-row)[:5]
        assert found.token_id == token_id
        assert [i for i, _ in found.top] == best.tolist()
        np.testing.assert_allclose([p for _, p in found.top], row[best], atol=1e-3)
        np.testing.assert_allclose(found.logprob, row[token_id], atol=1e-3)


@pytest.mark.reference
def test_prompt_logprobs_are_those_of_transformers(engine, reference):
    import torch

    results = engine.generate(PROMPTS, params(prompt_logprobs=3, max_tokens=2))
    for prompt_token_ids, outputs in zip(PROMPTS, results, strict=True):
        with torch.no_grad():
            logits = reference(torch.tensor([prompt_token_ids])).logits[0, :, : tiny.NUM_TOKENS]
        expected = torch.log_softmax(logits.double(), -1).numpy()
        first, *entries = outputs[0].prompt_logprobs
        assert first is None
        for token_id, entry, row in zip(prompt_token_ids[1:], entries, expected, strict=False):
            assert entry.token_id == token_id
            np.testing.assert_allclose(entry.logprob, row[token_id], atol=1e-3)
            assert [i for i, _ in entry.top] == np.argsort(-row)[:3].tolist()


@pytest.mark.parametrize("settings", [{}, {"num_pages": 1 + 16}, {"max_num_batched_tokens": 16}])
def test_prompt_logprobs_are_those_of_the_same_tokens_as_output(runner, alone, settings):
    prompts = [prompt(n, n) for n in (1, 2, 9, 30, 40)]
    plain = tiny.make_engine(runner)
    known = plain.generate(prompts, params(logprobs=2))
    longer = [(*p, *tiny.tokens_of(o)) for p, o in zip(prompts, known, strict=True)]
    engine = tiny.make_engine(runner, **settings)
    each = [params(prompt_logprobs=2, max_tokens=3 + i) for i in range(5)]
    # Among others that want none, of which two share the prompt.
    others = [params(max_tokens=9)] * 3
    results = engine.generate([*longer, *prompts[2:]], [*each, *others])
    for i, outputs in enumerate(results[:5]):
        entries = outputs[0].prompt_logprobs
        assert len(entries) == len(longer[i])
        assert [e.token_id for e in entries[1:]] == list(longer[i][1:])
        assert all(o.prompt_logprobs is None for o in outputs[1:])
        assert tiny.tokens_of(outputs) == alone(longer[i], params(max_tokens=3 + i))
        for entry, output in zip(entries[-12:], known[i], strict=True):
            np.testing.assert_allclose(entry.logprob, output.logprobs[0].logprob, atol=1e-4)
            assert [t for t, _ in entry.top] == [t for t, _ in output.logprobs[0].top]
    assert [tiny.tokens_of(o) for o in results[5:]] == [
        alone(p, params(max_tokens=9)) for p in prompts[2:]
    ]


def test_bad_words_end_where_they_would_be_completed(engine, alone):
    tokens = alone(PROMPTS[3])
    at = next(i for i in range(2, 12) if tokens[i] not in tokens[:i])
    word = tuple(tokens[at - 2 : at + 1])
    [found] = generate(engine, [PROMPTS[3]], params(bad_words=(word, (299, tokens[0]))))
    assert found[:at] == tokens[:at]
    assert found[at] != tokens[at]
    [found] = generate(engine, [PROMPTS[3]], params(bad_words=((tokens[0],),)))
    assert tokens[0] not in found


@pytest.mark.parametrize("size", [1, 2])
def test_no_ngram_comes_twice_and_the_best_other_token_comes_instead(engine, alone, size):
    """Beside rows that repeat theirs, whose tokens stay as they are."""
    prompts = [(5, 6, 7, 5, 6), PROMPTS[3], PROMPTS[4]]
    tight = params(no_repeat_ngram_size=size, max_tokens=30, logprobs=20)
    outputs = engine.generate(prompts * 2, [tight] * 3 + [params(max_tokens=30)] * 3)
    num_changed = 0
    for prompt_token_ids, steps in zip(prompts, outputs[:3], strict=True):
        context = list(prompt_token_ids)
        for step in steps:
            ngrams = {tuple(context[i : i + size]) for i in range(len(context) - size + 1)}
            last = context[len(context) - size + 1 :]
            fitting = [t for t, _ in step.logprobs[0].top if (*last, t) not in ngrams]
            assert step.token_ids == (fitting[0],)
            num_changed += fitting[0] != step.logprobs[0].top[0][0]
            context += step.token_ids
    assert num_changed
    assert [tiny.tokens_of(o) for o in outputs[3:]] == [
        alone(p, params(max_tokens=30)) for p in prompts
    ]


def test_ngrams_survive_preemption(runner):
    prompts = [prompt(12, seed) for seed in range(4)]
    each = [
        params(no_repeat_ngram_size=1, max_tokens=30, seed=i, temperature=0.4) for i in range(4)
    ]
    roomy = generate(tiny.make_engine(runner), prompts, each)
    crowded = tiny.make_engine(runner, num_pages=1 + 16)
    assert generate(crowded, prompts, each) == roomy
    assert crowded.stats().num_preemptions > 0
    assert all(len({*p, *t}) == len({*p}) + 30 for p, t in zip(prompts, roomy, strict=True))


def test_only_allowed_tokens_come(engine):
    allowed = (7, 99, 205)
    each = [params(allowed_token_ids=allowed, temperature=2.0, seed=i) for i in range(4)]
    results = generate(engine, [PROMPTS[3]] * 5, [*each, tiny.GREEDY])
    assert {t for tokens in results[:4] for t in tokens} == set(allowed)
    assert not set(results[4]) <= set(allowed)


def test_tokens_of_a_batch_are_those_of_each_request_alone(engine, alone):
    assert generate(engine, PROMPTS) == [alone(p) for p in PROMPTS]


@pytest.mark.parametrize("budget", [16, 17, 32])
def test_chunked_prompts_give_the_same_tokens(runner, alone, budget):
    engine = tiny.make_engine(runner, max_num_batched_tokens=budget)
    assert generate(engine, PROMPTS) == [alone(p) for p in PROMPTS]


def test_a_crowd_in_a_pool_of_three_is_preempted_and_ends_right(runner, alone):
    engine = tiny.make_engine(runner, num_pages=1 + 3 * 16)
    rng = random.Random(0)
    prompts = [prompt(rng.randint(1, 40), i) for i in range(40)]
    each = [params(max_tokens=rng.randint(1, 24)) for _ in prompts]
    assert generate(engine, prompts, each) == [alone(*x) for x in zip(prompts, each, strict=True)]
    crowded = tiny.make_engine(runner, num_pages=1 + 16)
    assert generate(crowded, prompts, each) == [alone(*x) for x in zip(prompts, each, strict=True)]
    stats = crowded.stats()
    assert stats.num_preemptions > 5
    assert stats.num_free_pages == stats.num_pages == 16
    assert stats.num_running == stats.num_waiting == 0
    assert stats.num_output_tokens == sum(p.max_tokens for p in each)
    assert stats.num_prompt_tokens == sum(map(len, prompts))


SHAPED = params(
    repetition_penalty=1.3,
    presence_penalty=0.7,
    frequency_penalty=0.4,
    logit_bias=((40, 2.0), (41, -100.0)),
    temperature=0.8,
    top_p=0.95,
    max_tokens=24,
)


def test_penalties_biases_and_seeds_survive_preemption(runner, alone):
    engine = tiny.make_engine(runner, num_pages=1 + 16)
    prompts = [prompt(n, n) for n in (9, 14, 20, 25, 9, 30)]
    each = [dataclasses.replace(SHAPED, seed=i) for i in range(len(prompts))]
    assert generate(engine, prompts, each) == [alone(*x) for x in zip(prompts, each, strict=True)]
    assert engine.stats().num_preemptions > 0
    plain = dataclasses.replace(SHAPED, repetition_penalty=1.0, presence_penalty=0.0, seed=0)
    assert alone(prompts[0], plain) != alone(prompts[0], each[0])


def test_two_devices_give_the_same_tokens(alone):
    small = {"num_pages": 50, "max_num_seqs": 2, "max_num_batched_tokens": 16}
    runner = tiny.make_runner(tiny.changed(tiny.CONFIG, tp_size=2, **small))
    assert runner._caches.arrays[0].k_pages.addressable_shards[0].data.shape[2] == 1
    engine = tiny.make_engine(runner)
    each = [tiny.GREEDY] * 4 + [dataclasses.replace(SHAPED, seed=i, max_tokens=8) for i in range(4)]
    found = generate(engine, PROMPTS, each)
    assert found == [alone(*x) for x in zip(PROMPTS, each, strict=True)]
    assert runner.num_recompiles == 0


def cached_tokens(engine, prompt_token_ids, **fields) -> int:
    request = GenerationRequest("r", prompt_token_ids, tiny.GREEDY, **fields)
    engine.add(request)
    return tiny.run(engine)["r"][-1].num_cached_tokens


def test_a_known_prefix_is_not_computed_again(engine, alone):
    first = prompt(30)
    assert cached_tokens(engine, first) == 0
    assert cached_tokens(engine, first) == 28  # 7 full pages of 4
    assert cached_tokens(engine, first[:28]) == 24  # its last token is computed
    assert cached_tokens(engine, (*first[:17], *prompt(10))) == 16
    # The output's tokens are context too: 30 + 11 tokens are in the cache, 10 full pages.
    assert cached_tokens(engine, (*first, *alone(first))) == 40
    assert cached_tokens(engine, first, cache_salt="other") == 0
    assert cached_tokens(engine, first, cache_salt="other") == 28
    stats = engine.stats()
    assert stats.prefix_hit_tokens == 28 + 24 + 16 + 40 + 28
    assert stats.prefix_queried_tokens == 4 * 30 + 28 + 27 + 42
    assert generate(engine, [first, first[:28]]) == [alone(first), alone(first[:28])]


def test_identical_prompts_of_one_step_share_pages_at_once(runner, alone):
    engine = tiny.make_engine(runner, num_pages=1 + 16)
    same = prompt(19)
    for i in range(4):
        tiny.add(engine, f"{i}", same)
    engine.step()
    # 16 tokens in 4 pages are shared, and each has a page of its own for the last 3.
    assert engine.stats().num_running == 4
    assert engine.stats().num_free_pages == 16 - 4 - 4
    outputs = tiny.run(engine)
    assert {k: tiny.tokens_of(v) for k, v in outputs.items()} == {
        f"{i}": alone(same) for i in range(4)
    }
    assert [outputs[f"{i}"][-1].num_cached_tokens for i in range(4)] == [0, 16, 16, 16]


def test_without_the_prefix_cache_tokens_are_the_same(runner):
    prompts = [(*prompt(20)[:n], *prompt(5, n)) for n in (20, 20, 12, 8, 20)]
    with_cache, without = (tiny.make_engine(runner, use_prefix_cache=x) for x in (True, False))
    assert generate(with_cache, prompts) == generate(without, prompts)
    assert with_cache.stats().prefix_hit_tokens > 20
    assert without.stats().prefix_hit_tokens == 0


def last(engine, prompt_token_ids, sampling):
    [outputs] = engine.generate([prompt_token_ids], sampling)
    tiny.assert_ends_once(outputs)
    return outputs[-1], tiny.tokens_of(outputs), "".join(output.text for output in outputs)


def test_max_tokens_ends_with_length_and_all_the_text(engine, alone):
    tokens = alone(PROMPTS[2])
    output, found, text = last(engine, PROMPTS[2], params(max_tokens=7))
    assert (output.finish_reason, found, text) == ("length", tokens[:7], tiny.text_of(tokens[:7]))
    assert (output.num_prompt_tokens, output.num_output_tokens) == (4, 7)


def test_a_stop_token_ends_with_its_id(engine, alone):
    tokens = alone(PROMPTS[2])
    assert tokens[5] not in tokens[:5]
    output, found, text = last(engine, PROMPTS[2], params(stop_token_ids=(299, tokens[5])))
    assert (output.finish_reason, output.stop_reason, found) == ("stop", tokens[5], tokens[:6])
    assert text == tiny.text_of(tokens[:5])


def test_a_stop_string_may_lie_across_tokens(engine, alone):
    tokens = alone(PROMPTS[2])
    stop = tiny.text_of(tokens[3:6])[1:-1]
    output, found, text = last(engine, PROMPTS[2], params(stop=("nothing", stop)))
    assert (output.finish_reason, output.stop_reason, found) == ("stop", stop, tokens[:6])
    assert text == tiny.text_of(tokens[:3]) + " "
    included = params(stop=(stop,), include_stop_str_in_output=True)
    assert last(engine, PROMPTS[2], included)[2] == text + stop


def test_a_stop_sequence_ends_and_is_held_back(engine, alone):
    tokens = alone(PROMPTS[2])
    stop = tuple(tokens[3:6])
    sampling = params(stop_sequences=((299, 298), (*stop[:2], 299), stop))
    [outputs] = engine.generate([PROMPTS[2]], sampling)
    assert (outputs[-1].finish_reason, outputs[-1].stop_reason) == ("stop", tiny.text_of(stop))
    assert tiny.tokens_of(outputs) == tokens[:6]
    assert [output.text for output in outputs] == [*map(tiny.text_of, zip(tokens[:3])), "", "", ""]
    included = dataclasses.replace(sampling, include_stop_str_in_output=True)
    assert last(engine, PROMPTS[2], included)[2] == tiny.text_of(tokens[:6])
    later = dataclasses.replace(sampling, min_tokens=7)
    assert last(engine, PROMPTS[2], later)[1:] == (tokens, tiny.text_of(tokens))


def test_what_a_stop_sequence_held_back_comes_at_the_end(engine, alone):
    tokens = alone(PROMPTS[2])
    sampling = params(stop_sequences=((tokens[10], tokens[11], 299),))
    assert last(engine, PROMPTS[2], sampling)[2] == tiny.text_of(tokens)


def test_a_request_ends_when_its_own_time_is_over(runner, alone):
    engine = tiny.make_engine(runner, max_num_seqs=1)
    for i, timeout_s in enumerate((None, 0.0, 60.0)):
        request = GenerationRequest(f"{i}", PROMPTS[2], params(), timeout_s=timeout_s)
        engine.add(request)
    outputs = tiny.run(engine)
    [late] = outputs["1"]
    assert (late.finish_reason, late.error_kind, late.text) == ("error", "timeout", "")
    assert "longer than 0 ms" in late.error
    for i in ("0", "2"):
        assert tiny.tokens_of(outputs[i]) == alone(PROMPTS[2])


def test_a_running_request_keeps_what_it_had_when_its_time_is_over(engine, alone):
    engine.add(GenerationRequest("r", PROMPTS[2], params(), timeout_s=60.0))
    outputs = []
    while len(tiny.tokens_of(outputs)) < 3:
        outputs += engine.step()
    engine._live["r"][0].arrived_s -= 61
    outputs += engine.step()
    tiny.assert_ends_once(outputs)
    assert (outputs[-1].error_kind, outputs[-1].num_output_tokens) == ("timeout", 4)
    assert tiny.tokens_of(outputs) == alone(PROMPTS[2])[:4]
    assert not tiny.run(engine)
    assert engine.stats().num_running == 0


def to_end(**options) -> SamplingParams:
    """Such that the end token is the most likely one after a few tokens."""
    return params(logit_bias=((tiny.END, 5.0),), max_tokens=40, **options)


def test_the_end_token_ends_unless_ignored_or_before_min_tokens(engine):
    output, found, text = last(engine, PROMPTS[3], to_end(ignore_eos=False))
    assert (output.finish_reason, output.stop_reason) == ("stop", None)
    assert found.index(tiny.END) == len(found) - 1 < 20
    assert text == tiny.text_of(found[:-1])
    output, ignored, _ = last(engine, PROMPTS[3], to_end())
    assert (output.finish_reason, len(ignored)) == ("length", 40)
    assert ignored[: len(found)] == found
    for more in (1, 3):
        least = len(found) - 1 + more
        output, later, _ = last(engine, PROMPTS[3], to_end(ignore_eos=False, min_tokens=least))
        assert tiny.END not in later[:least]
        assert later[: len(found) - 1] == found[:-1]
        assert len(later) > least or output.finish_reason == "length"
    at_once = params(logit_bias=((tiny.END, 100.0),), ignore_eos=False)
    for least in (0, 1, 5):
        found = last(engine, PROMPTS[3], dataclasses.replace(at_once, min_tokens=least))[1]
        assert found.index(tiny.END) == least == len(found) - 1


def test_min_tokens_holds_back_stop_tokens_as_well(engine, alone):
    stop = alone(PROMPTS[2])[2]
    sampling = params(stop_token_ids=(stop,), min_tokens=6)
    assert stop not in last(engine, PROMPTS[2], sampling)[1][:6]


def test_the_context_limit_ends_with_length(engine, alone):
    output, found, _ = last(engine, prompt(50), params(max_tokens=None))
    assert (output.finish_reason, len(found)) == ("length", 64 - 50)
    assert found[:12] == alone(prompt(50))
    output, found, _ = last(engine, prompt(63), params(max_tokens=None))
    assert (output.finish_reason, len(found)) == ("length", 1)


def test_special_tokens_are_text_on_request(engine):
    sampling = to_end(skip_special_tokens=False)
    _, found, text = last(engine, PROMPTS[3], sampling)
    assert tiny.END in found
    assert text.count("</s>") == found.count(tiny.END)


def test_abort_frees_all_pages_at_every_moment(runner, alone):
    for steps in range(5):
        engine = tiny.make_engine(runner, use_prefix_cache=False)
        tiny.add(engine, "aborted", prompt(40))
        tiny.add(engine, "kept", PROMPTS[2])
        outputs = [output for _ in range(steps) for output in engine.step()]
        aborted = engine.abort("aborted")
        engine.check_integrity()
        assert aborted.finish_reason == "abort"
        assert engine.abort("aborted") is None
        outputs += [output for part in tiny.run(engine).values() for output in part]
        assert tiny.tokens_of([o for o in outputs if o.request_id == "kept"]) == alone(PROMPTS[2])
        assert not [o for o in outputs if o.request_id == "aborted" and o.finish_reason]
        assert engine.stats().num_free_pages == engine.stats().num_pages


def test_a_seed_repeats_its_tokens_whatever_runs_beside_it(engine, alone):
    sampling = params(temperature=1.0, seed=11)
    expected = alone(PROMPTS[3], sampling)
    others = [params(temperature=1.5, seed=None, max_tokens=9), tiny.GREEDY, SHAPED]
    found = generate(engine, [*PROMPTS[:3], PROMPTS[3]], [*others, sampling])
    assert found[3] == expected
    assert generate(engine, [PROMPTS[3], PROMPTS[5]], [sampling, others[0]])[0] == expected


def test_equal_requests_with_other_seeds_or_none_differ(engine):
    each = [params(temperature=1.0, seed=seed) for seed in (1, 2, 3, 1, 2**32 + 1, None, None)]
    found = [tuple(x) for x in generate(engine, [PROMPTS[3]] * len(each), each)]
    assert found[0] == found[3] == found[4]  # a seed counts by its lower 32 bits
    assert len({*found[:3], *found[5:]}) == 5


def test_logprobs_come_for_each_token_and_only_on_request(engine):
    with_them, without = engine.generate(PROMPTS[2:4], [params(logprobs=0), params()])
    assert [len(o.logprobs) for o in with_them] == [len(o.token_ids) for o in with_them]
    assert all(o.logprobs[0].top == () and o.logprobs[0].logprob < 0 for o in with_them)
    assert all(o.logprobs is None for o in without)


@pytest.mark.parametrize(
    ("prompt_token_ids", "options", "message"),
    [
        ((), {}, "empty"),
        (prompt(64), {"max_tokens": None}, "holds 64 tokens.*prompt has 64"),
        (prompt(3), {"max_tokens": 0}, "at least 1"),
        ((5, 300), {}, "vocabulary of 300"),
        ((5, -1), {}, "vocabulary of 300"),
        (prompt(3), {"bad_words": ((5, 300),)}, "bad_words.*vocabulary of 300"),
        (prompt(3), {"bad_words": ((5,) * 9,)}, "bad_words: expected at most 8, found 9"),
        (prompt(3), {"allowed_token_ids": (300,)}, "allowed_token_ids.*vocabulary of 300"),
        (prompt(3), {"prompt_logprobs": 21}, "at most 20"),
        (prompt(3), {"logit_bias": ((300, 1.0),)}, "logit_bias.*vocabulary of 300"),
        (prompt(3), {"logit_bias": ((5, 1.0),) * 512}, "513 entries together; at most 512"),
        (prompt(3), {"logprobs": 21}, "at most 20"),
    ],
)
def test_what_cannot_be_honoured_is_refused(engine, prompt_token_ids, options, message):
    with pytest.raises(RequestError, match=message):
        tiny.add(engine, "r", prompt_token_ids, **options)
    assert not engine.has_work


def test_what_just_fits_is_honoured(engine):
    each = [
        params(max_tokens=4),
        params(max_tokens=2, logprobs=20),
        params(max_tokens=2, logit_bias=tuple((i % 300, 0.01) for i in range(511))),
    ]
    found = generate(engine, [prompt(60), prompt(3), prompt(3)], each)
    assert [len(x) for x in found] == [4, 2, 2]


def test_a_full_queue_is_refused(runner):
    engine = tiny.make_engine(runner, max_num_waiting=2)
    tiny.add(engine, "a", prompt(3))
    tiny.add(engine, "b", prompt(3))
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        tiny.add(engine, "c", prompt(3))
    engine.step()
    tiny.add(engine, "c", prompt(3))
    assert len(tiny.run(engine)) == 3


def test_min_tokens_beyond_any_context_do_not_break_the_step(engine, alone):
    each = [params(max_tokens=None, min_tokens=2**31 - 1, ignore_eos=False), tiny.GREEDY]
    found = generate(engine, [prompt(50), PROMPTS[2]], each)
    assert (len(found[0]), found[1]) == (14, alone(PROMPTS[2]))


def test_any_mix_of_requests_ends_once_each(runner, alone):
    rng = random.Random(1)
    engine = tiny.make_engine(runner, num_pages=1 + 18)
    pending, outputs, aborted = list(range(60)), {}, set()
    asked = {
        i: (
            (*prompt(24, i % 3)[: rng.randint(0, 24)], *prompt(rng.randint(1, 12), i)),
            rng.choice([params(max_tokens=1 + i % 20), dataclasses.replace(SHAPED, seed=i)]),
        )
        for i in pending
    }
    while pending or engine.has_work:
        if pending and rng.random() < 0.5:
            i = pending.pop()
            engine.add(GenerationRequest(f"{i}", *asked[i], priority=rng.choice([0, 0, 1])))
        if rng.random() < 0.03 and engine._live:
            request_id = rng.choice(sorted(engine._live))
            outputs.setdefault(request_id, []).append(engine.abort(request_id))
            aborted.add(request_id)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    assert len(outputs) == 60
    assert aborted
    assert engine.stats().num_preemptions > 0
    for request_id, parts in outputs.items():
        tiny.assert_ends_once(parts)
        expected = alone(*asked[int(request_id)])
        found = tiny.tokens_of(parts)
        assert found == expected[: len(found)]
        assert (found == expected) or request_id in aborted
