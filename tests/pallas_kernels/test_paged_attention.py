"""The serving implementation against the plain twin, and the twin against a numpy loop."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import paged_attention as op

HEADS = [(9, 3, 64), (4, 4, 16), (8, 1, 32)]  # N, K, H
OPTIONS = [
    {},
    {"window": 7},
    {"window": 200},
    {"soft_cap": 3.0},
    {"sinks": True},
    {"window": 50, "soft_cap": 5.0, "sinks": True},
]


def ragged_case(seed, query_lens, context_lens, heads, page_size=16, num_rows=None, room=0):
    """Random queries and a scrambled paged cache in which everything unowned is NaN."""
    rng = np.random.default_rng(seed)
    N, K, H = heads
    B = num_rows or len(query_lens)
    num_pages = [-(-c // page_size) for c in context_lens]
    total = sum(num_pages) + 1
    k, v = (np.full((total, page_size, K, H), np.nan, np.float32) for _ in range(2))
    free = list(rng.permutation(np.arange(1, total)))
    width = max([*num_pages, 1]) + 3
    table = np.zeros((B, width), np.int32)
    for b, (context, pages) in enumerate(zip(context_lens, num_pages, strict=True)):
        for i in range(pages):
            page = table[b, i] = free.pop()
            live = min(page_size, context - i * page_size)
            for x in (k, v):
                x[page, :live] = rng.standard_normal((live, K, H))
    T = sum(query_lens) + room
    starts = np.full(B + 1, sum(query_lens), np.int32)
    starts[: len(query_lens) + 1] = np.cumsum([0, *query_lens])
    lens = np.zeros(B, np.int32)
    lens[: len(context_lens)] = context_lens
    q = rng.standard_normal((T, N, H)).astype(np.float32)
    return q, k, v, table, starts, lens


def by_hand(q, k, v, table, starts, lens, *, scale, window=None, soft_cap=None, sinks=None):
    """Float64 loops, one token and one head at a time."""
    out = np.zeros(q.shape)
    page_size, K = k.shape[1:3]
    G = q.shape[1] // K
    for b in range(len(lens)):
        for t in range(starts[b], starts[b + 1]):
            position = lens[b] - starts[b + 1] + t
            first = 0 if window is None else max(0, position - window + 1)
            where = [(table[b, s // page_size], s % page_size) for s in range(first, position + 1)]
            for n in range(q.shape[1]):
                keys = np.array([k[p, o, n // G] for p, o in where], np.float64)
                values = np.array([v[p, o, n // G] for p, o in where], np.float64)
                scores = keys @ q[t, n].astype(np.float64) * scale
                if soft_cap is not None:
                    scores = soft_cap * np.tanh(scores / soft_cap)
                weights = np.exp(scores)
                total = weights.sum() + (0 if sinks is None else np.exp(sinks[n]))
                out[t, n] = weights @ values / total
    return out


def assert_is_by_hand(case, **options):
    q, starts = case[0], case[4]
    if options.pop("sinks", False):
        options["sinks"] = np.linspace(-1, 2, q.shape[1]).astype(np.float32)
    want = by_hand(*case, scale=0.2, **options)[: starts[-1]]
    for name in ("reference", "xla"):
        decode = bool((np.diff(starts) == 1).all())
        for is_decode in {False, decode}:
            got = jax.jit(
                lambda *a, name=name, is_decode=is_decode: op.paged_attention(
                    *a, scale=0.2, implementation=name, decode=is_decode, **options
                )
            )(*map(jnp.asarray, case))
            np.testing.assert_allclose(got[: starts[-1]], want, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mixed_rows(heads, options):
    case = ragged_case(0, [1, 1, 1, 70, 5, 2], [1, 130, 33, 70, 140, 16], heads, room=9)
    assert_is_by_hand(case, **options)


@pytest.mark.parametrize("page_size", [1, 8, 64, 256])
def test_page_sizes(page_size):
    case = ragged_case(1, [1, 3, 1, 65], [300, 129, 257, 128], HEADS[0], page_size)
    assert_is_by_hand(case)


def test_lengths_at_every_edge():
    edges = [1, 15, 16, 17, 127, 128, 129, 255, 256, 257]
    assert_is_by_hand(ragged_case(2, [1] * len(edges), edges, HEADS[0]))
    assert_is_by_hand(ragged_case(3, edges, edges, (3, 1, 8)))


def test_unused_rows_and_many_decodes():
    lens = [5 * i % 97 + 1 for i in range(21)]
    assert_is_by_hand(ragged_case(4, [1] * 21, lens, HEADS[0], num_rows=32, room=11))
    assert_is_by_hand(
        ragged_case(5, [1] * 19 + [40, 2], [*lens[:19], 77, 2], HEADS[0], num_rows=32)
    )


def test_fewer_tokens_than_rows():
    assert_is_by_hand(ragged_case(6, [3, 2], [3, 40], HEADS[0], num_rows=16))


def test_nothing_to_do():
    case = ragged_case(7, [], [], HEADS[0], num_rows=4, room=4)
    assert op.xla(*map(jnp.asarray, case), scale=1.0).shape == (4, 9, 64)


@pytest.mark.parametrize("decode", [True, False])
def test_a_quantized_cache_is_worth_its_numbers_times_the_scale_of_page_and_head(decode):
    query_lens, contexts = ([1, 1, 1], [40, 1, 130]) if decode else ([1, 30, 66], [40, 33, 130])
    q, k, v, *rows = ragged_case(8, query_lens, contexts, HEADS[0])
    rng = np.random.default_rng(9)
    scales = [rng.uniform(0.01, 0.05, (k.shape[0], 3)).astype(np.float32) for _ in range(2)]
    quantized = [np.nan_to_num(np.round(x * 30), nan=127).astype(np.int8) for x in (k, v)]
    values = [x * s[:, None, :, None] for x, s in zip(quantized, scales, strict=True)]
    want = by_hand(q, *values, *rows, scale=0.2)
    for name in ("reference", "xla"):
        got = op.paged_attention(
            *map(jnp.asarray, (q, *quantized, *rows)),
            scale=0.2,
            k_scales=jnp.asarray(scales[0]),
            v_scales=jnp.asarray(scales[1]),
            decode=decode,
            implementation=name,
        )
        np.testing.assert_allclose(got, want, atol=2e-5, err_msg=name)


def test_an_unknown_implementation_names_the_choices():
    with pytest.raises(ValueError, match=r"paged_attention: no implementation nope .* xla"):
        op.OP.choose("nope")
