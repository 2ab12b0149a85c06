from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtpjax.engine import batch as packing
from rtpjax.engine.batch import (
    NO_SLOT,
    PENDING,
    Bucket,
    Layout,
    OutputInputs,
    output_inputs,
    pack,
    unpack,
)
from rtpjax.engine.request import GenerationRequest, SamplingParams
from rtpjax.engine.scheduler import ScheduledRow
from rtpjax.engine.sequence import Sequence

WIDTH = 5  # pages that a row can name
PAGE_SIZE = 4
BUCKETS = [
    Bucket("decode", 2, 2),
    Bucket("decode", 4, 4),
    Bucket("extend", 8, 4),
    Bucket("extend", 16, 4),
]


def scheduled(start, count, *, known, pages, slot, samples=True, seed=0, **sampling):
    """A row of a sequence that knows tokens 100 * slot, 100 * slot + 1, ..."""
    request = GenerationRequest("r", (100 * slot,), SamplingParams(**sampling))
    sequence = Sequence(request, order=(0, 0), max_tokens=99)
    sequence.token_ids = [100 * slot + i for i in range(known)]
    sequence.pages, sequence.slot = [pages], slot
    sequence.sampling_fields = packing.sampling_fields(sequence, seed)
    return ScheduledRow(sequence, start, count, samples)


def test_a_ragged_batch_by_hand():
    chunk = scheduled(3, 4, known=9, pages=[7, 2, 4], slot=1, samples=False)
    short = scheduled(5, 1, known=6, pages=[3, 5], slot=3)
    long = scheduled(8, 1, known=8, pages=[9, 6, 8], slot=2)  # its token is in flight
    batch = pack([[chunk, short, long]], BUCKETS, WIDTH, PAGE_SIZE)
    # Decodes first, the longest context first.
    assert batch.rows == [(long, [0]), (short, [1]), (chunk, [])]
    assert batch.layout == Layout(BUCKETS[2], WIDTH)
    tokens, query_start, (page_table,), context_lens = batch.layout.split(batch.vector)
    np.testing.assert_array_equal(
        tokens,
        [
            [PENDING, 305, 103, 104, 105, 106, 0, 0],
            [8, 5, 3, 4, 5, 6, 0, 0],
            [8 * 4, 5 * 4 + 1, 7 * 4 + 3, 2 * 4, 2 * 4 + 1, 2 * 4 + 2, 0, 0],
            [2, 3, 1, 1, 1, 1, NO_SLOT, NO_SLOT],
        ],
    )
    assert query_start.tolist() == [0, 1, 2, 6, 6]
    assert page_table.tolist() == [
        [9, 6, 8, 0, 0],
        [3, 5, 0, 0, 0],
        [7, 2, 4, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert context_lens.tolist() == [9, 6, 7, 0]
    (outputs,) = batch.outputs
    fields = OutputInputs(*outputs.T)
    assert fields.context_lens.tolist() == [9, 6]
    assert fields.at.tolist() == [0, 1]
    assert fields.sample_slots.tolist() == [2, 3]
    assert fields.slots.tolist() == [2, 3]
    assert fields.prompt_lens.tolist() == [1, 1]


def scoring(start, count, *, prompt_len, slot):
    """A row of a request that wants its prompt's log-probabilities."""
    row = scheduled(start, count, known=prompt_len, pages=[1, 2, 3, 4], slot=slot, temperature=2.0)
    sampling = SamplingParams(prompt_logprobs=1, temperature=2.0, repetition_penalty=2.0)
    row.sequence.request = GenerationRequest("r", tuple(row.sequence.token_ids), sampling)
    row.sequence.sampling_fields = packing.sampling_fields(row.sequence, 0)
    return dataclasses.replace(row, samples=start + count == prompt_len)


def fields_at(batch, places):
    """The outputs at some places."""
    return OutputInputs(*np.concatenate(batch.outputs)[places].T)


def test_a_prompt_that_is_scored_is_one_row_with_an_output_for_each_token():
    first, last = scoring(0, 4, prompt_len=9, slot=1), scoring(4, 5, prompt_len=9, slot=2)
    one = scheduled(3, 1, known=4, pages=[5], slot=0)
    batch = pack([[first, last, one]], BUCKETS, WIDTH, PAGE_SIZE)
    assert batch.layout.bucket == BUCKETS[3]
    assert [len(outputs) for outputs in batch.outputs] == [4, 4, 2]
    places = dict(zip((id(row) for row, _ in batch.rows), (p for _, p in batch.rows), strict=True))
    assert [places[id(row)] for row in (one, last, first)] == [[0], [1, 2, 3, 4, 5], [6, 7, 8, 9]]
    scored = fields_at(batch, places[id(first)])
    assert scored.target_ids.tolist() == [101, 102, 103, 104]
    assert scored.context_lens.tolist() == [1, 2, 3, 4]
    assert scored.at.tolist() == [6, 7, 8, 9]  # behind the others' tokens
    assert scored.sample_slots.tolist() == [NO_SLOT] * 4
    assert scored.wants_logprobs.tolist() == [1] * 4
    assert not scored.has_penalty.any() and not scored.temperature.any()
    sampled = fields_at(batch, places[id(last)])
    assert sampled.target_ids.tolist() == [205, 206, 207, 208, -1]
    assert sampled.has_penalty.tolist() == [0, 0, 0, 0, 1]


def test_each_group_has_its_own_outputs_and_all_have_as_many():
    many = [scheduled(3, 1, known=4, pages=[5], slot=i) for i in range(3)]
    prompt = scoring(0, 6, prompt_len=7, slot=3)
    batch = pack([many, [prompt], []], BUCKETS, WIDTH, PAGE_SIZE)
    assert [len(outputs) for outputs in batch.outputs] == [3 * 4, 3 * 2]
    assert [places for _, places in batch.rows] == [[0], [1], [2], [4, 5, 6, 7, 14, 15]]
    found = fields_at(batch, [4, 5, 6, 7, 14, 15])
    assert found.target_ids.tolist() == [301, 302, 303, 304, 305, 306]
    assert found.at.tolist() == list(range(6))
    empty = np.setdiff1d(np.arange(18), [place for _, places in batch.rows for place in places])
    assert (fields_at(batch, empty).sample_slots == NO_SLOT).all()


def test_a_step_without_outputs_has_an_empty_one_to_wait_for():
    row = scheduled(0, 4, known=9, pages=[7, 2, 4], slot=1, samples=False)
    batch = pack([[row]], BUCKETS, WIDTH, PAGE_SIZE)
    assert batch.rows == [(row, [])]
    (outputs,) = batch.outputs
    assert OutputInputs(*outputs.T).sample_slots.tolist() == [NO_SLOT] * 2


@pytest.mark.parametrize(
    ("counts", "bucket"),
    [
        ([1], BUCKETS[0]),
        ([1, 1, 1], BUCKETS[1]),
        ([2], BUCKETS[2]),
        ([7, 1], BUCKETS[2]),
        ([8, 1], BUCKETS[3]),
        ([16], BUCKETS[3]),
    ],
)
def test_the_smallest_bucket_that_holds_the_step(counts, bucket):
    rows = [
        scheduled(0, count, known=count, pages=[1, 2, 3, 4], slot=i)
        for i, count in enumerate(counts)
    ]
    batch = pack([rows], BUCKETS[::-1], WIDTH, PAGE_SIZE)
    assert batch.layout.bucket == bucket
    assert batch.vector.shape == (batch.layout.size,)


def test_the_step_reads_what_was_packed():
    options = {
        "top_k": 40,
        "temperature": 0.7,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.25,
        "min_tokens": 3,
        "logprobs": 0,
    }
    one = scheduled(2, 3, known=4, pages=[5, 6], slot=2, seed=2**32 - 5, **options)
    two = scheduled(0, 1, known=1, pages=[8], slot=0, seed=7)
    batch = pack([[one, two]], BUCKETS, WIDTH, PAGE_SIZE)
    on_device = 1000 + jnp.arange(4 * 32, dtype=jnp.int32).reshape(4, 32)
    read = jax.jit(unpack, static_argnums=1)
    vector = jnp.asarray(batch.vector)
    token_ids, token_slots, step = read(vector, batch.layout, on_device)
    two_outputs = pack([[one, two]], BUCKETS[1:], WIDTH, PAGE_SIZE).outputs  # and two of padding
    rows = jax.jit(output_inputs)(jnp.asarray(two_outputs[0]))
    # Position 4 of slot 2 is in flight.
    assert token_ids[:4].tolist() == [0, 202, 203, 1000 + 2 * 32 + 4]
    assert token_slots.tolist() == [0, 2, 2, 2, *[NO_SLOT] * 4]
    assert step.kind == "extend"
    assert step.positions[:4].tolist() == [0, 2, 3, 4]
    assert step.slots.tolist() == [[32, 22, 23, 24, 0, 0, 0, 0]]
    assert step.query_start.tolist() == [0, 1, 4, 4, 4]
    assert step.context_lens.tolist() == [1, 5, 0, 0]
    assert step.page_tables[0, :2].tolist() == [[8, 0, 0, 0, 0], [5, 6, 0, 0, 0]]
    for name, value in options.items():
        if name in OutputInputs._fields:
            expected = np.asarray([value], np.float32 if isinstance(value, float) else np.int32)
            assert getattr(rows, name)[1] == expected[0], name
    assert rows.seeds[:2].tolist() == [7, -5]
    assert rows.has_bias.tolist() == [0, 1, 0, 0]
    assert rows.has_penalty.tolist() == [0, 1, 0, 0]
    assert rows.wants_logprobs.tolist() == [0, 1, 0, 0]
    # Defaults, and rows that are padding: nothing is changed or divided by 0.
    assert rows.top_p.tolist() == [1.0, np.float32(0.9), 1.0, 1.0]
    assert rows.repetition_penalty.tolist() == [1.0, np.float32(1.1), 1.0, 1.0]
    assert rows.temperature.tolist() == [1.0, np.float32(0.7), 0.0, 0.0]


@pytest.mark.parametrize("bucket", BUCKETS, ids=str)
def test_parts_lie_where_both_sides_look_for_them(bucket):
    layout = Layout(bucket, WIDTH)
    vector = np.arange(layout.size, dtype=np.int32)
    parts, traced = layout.split(vector), jax.jit(layout.split)(jnp.asarray(vector))
    for ours, theirs in zip(parts, traced, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.concatenate([part.ravel() for part in parts]).tolist() == vector.tolist()
    assert all(np.shares_memory(part, vector) for part in parts)


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63 - 1, -(2**63)])
def test_any_seed_becomes_its_lower_32_bits(seed):
    row = scheduled(0, 1, known=1, pages=[1], slot=0, seed=seed)
    found = OutputInputs(*row.sequence.sampling_fields).seeds
    assert found.view(np.uint32) == seed % 2**32
