from __future__ import annotations

import copy
import dataclasses

import jax
import numpy as np
import pytest

from pallas_kernels.paged_attention import OP
from pallas_kernels.registry import Implementation, Target, tracing_for
from rtpjax.engine import kv_cache
from rtpjax.engine.batch import Bucket
from rtpjax.engine.request import SamplingParams
from rtpjax.engine.runner import biases_of, buckets_of
from rtpjax.engine.sampling import EXCLUDED
from rtpjax.engine.wants import EVERYTHING, NOTHING
from rtpjax.errors import ConfigError
from tests.rtpjax.engine import tiny


@pytest.mark.parametrize(
    ("rows", "tokens", "platform", "decode", "extend"),
    [
        (32, 512, "cpu", [2, 4, 8, 16, 32], [32, 64, 128, 256, 512]),
        (1, 16, "cpu", [2], [16]),
        (5, 100, "cpu", [2, 4, 5], [32, 64, 100]),
        (3, 33, "gpu", [1, 2, 3], [32, 33]),
        (1, 32, "gpu", [1], [32]),
    ],
)
def test_buckets_are_families_of_one_dimension(rows, tokens, platform, decode, extend):
    config = dataclasses.replace(tiny.CONFIG, max_num_seqs=rows, max_num_batched_tokens=tokens)
    assert buckets_of(config, platform) == [
        *[Bucket("decode", n, n) for n in decode],
        *[Bucket("extend", n, rows) for n in extend],
    ]


def naming(runner, name):
    """The runner, of which the operator has named the implementation of attention."""
    named = copy.copy(runner)
    named.config = dataclasses.replace(runner.config, attention_implementation=name)
    return named


@pytest.mark.parametrize("bucket", [Bucket("decode", 2, 2), Bucket("extend", 32, 4)], ids=str)
def test_attention_that_the_operator_names_is_in_the_layers(runner, bucket, monkeypatch):
    calls = []

    def counted(*arrays, **options):
        calls.append(options["decode"])
        return OP.implementations["xla"].function(*arrays, **options)

    monkeypatch.setitem(OP.implementations, "counted", Implementation("counted", counted, ("cpu",)))
    naming(runner, "counted")._compile_forward(bucket)
    assert calls == [bucket.kind == "decode"]  # both layers are alike, and traced once


def test_a_named_attention_that_cannot_do_the_model_is_an_error_of_the_setting(runner):
    expected = "ATTENTION_IMPLEMENTATION is 'mosaic': .* compute capability 80 .* pallas instead"
    with tracing_for(Target("gpu", 80)), pytest.raises(ConfigError, match=expected):
        naming(runner, "mosaic")._compile_forward(Bucket("extend", 32, 4))


def test_programs_update_cache_and_state_in_place(runner):
    cache_bytes = sum(x.nbytes for x in jax.tree.leaves(runner._caches))
    assert len(runner._forward) == 3
    for bucket, program in runner._forward.items():
        memory = program.memory_analysis()
        assert memory.alias_size_in_bytes >= cache_bytes, bucket
        assert memory.temp_size_in_bytes < cache_bytes, bucket


def test_no_program_copies_what_all_layers_share(runner):
    assert not tiny.copied_caches(runner)


def test_a_step_leaves_the_cache_where_it_was(runner):
    pointers = {x.unsafe_buffer_pointer() for x in jax.tree.leaves(runner._caches)}
    tiny.generate(tiny.make_engine(runner), [tiny.prompt(20)])
    assert {x.unsafe_buffer_pointer() for x in jax.tree.leaves(runner._caches)} == pointers


def test_nothing_is_compiled_after_compile(runner, caplog):
    engine = tiny.make_engine(runner)
    every = tiny.params(
        temperature=0.9,
        top_k=5,
        min_tokens=3,
        repetition_penalty=1.2,
        logit_bias=((4, 1.0),),
        logprobs=3,
    )
    with jax.log_compiles():
        tiny.generate(engine, [tiny.prompt(n, n) for n in (1, 5, 30, 50)], every)
        runner.reset()
        tiny.generate(tiny.make_engine(runner), [tiny.prompt(9)], every)
    compiled = [r.getMessage() for r in caplog.records if "Compiling" in r.getMessage()]
    # Making fresh arrays after a failure may compile; steps may not.
    assert not [m for m in compiled if "step" in m or "_fill_slot" in m]


def test_steps_run_the_least_program_and_all_were_compiled(runner, monkeypatch):
    chosen = []
    execute = runner.execute

    def watched(call):
        if call.name == "choose":
            chosen.append(runner.choices[call.number])
        return execute(call)

    monkeypatch.setattr(runner, "execute", watched)
    engine = tiny.make_engine(runner)
    tiny.generate(engine, [tiny.prompt(5)])
    assert {wants for _, wants in chosen} == {NOTHING}
    chosen.clear()
    both = [tiny.params(max_tokens=4, logprobs=1), tiny.params(max_tokens=8)]
    tiny.generate(engine, [tiny.prompt(5), tiny.prompt(6)], both)
    # Tokens are counted when they are scheduled: the fifth step is of the second request alone.
    assert [wants for _, wants in chosen] == [EVERYTHING] * 4 + [NOTHING] * 4
    assert runner.choices == [(n, wants) for n in (2, 4) for wants in (NOTHING, EVERYTHING)]
    assert runner._choose.keys() == set(runner.choices)
    assert runner.num_programs == len(runner._forward) + len(runner._choose)


def test_reset_lets_the_old_cache_go_before_it_makes_a_fresh_one(runner, monkeypatch):
    tiny.generate(tiny.make_engine(runner), [tiny.prompt(9)])
    allocate, held = kv_cache.allocate, []

    def watched(*args):
        held.extend(jax.tree.leaves(runner._caches))
        return allocate(*args)

    monkeypatch.setattr(kv_cache, "allocate", watched)
    runner.reset()
    assert not held
    assert not any(np.asarray(x).any() for x in jax.tree.leaves(runner._caches))


def test_biases_are_the_callers_for_ever_and_the_end_tokens_up_to_min_tokens():
    sequence = tiny.sequence(
        (5, 6, 7), SamplingParams(min_tokens=4, logit_bias=((9, 1.5),), stop_token_ids=(8,))
    )
    biases = biases_of(sequence, frozenset({8, 2}))
    assert biases == [(9, 1.5, 2**31 - 1), (2, EXCLUDED, 7), (8, EXCLUDED, 7)]
    assert not biases_of(tiny.sequence((5,), SamplingParams()), frozenset({2}))


def test_min_tokens_beyond_int32_still_fit():
    sequence = tiny.sequence((5, 6, 7), SamplingParams(min_tokens=2**31 - 1))
    assert biases_of(sequence, frozenset({2})) == [(2, EXCLUDED, 2**31 - 1)]
