"""Random ragged batches over a scrambled cache in which everything that no row owns is poison.

Tests and `rtpjax check` compare kernels with their plain twins on them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import paged_attention as op
from pallas_kernels.paged_tiles import Operands, Scores
from pallas_kernels.shapes import ATTENTION_SHAPES, AttentionShape

_DISTINCT = (
    "SmolLM2-135M",
    "Llama-3.1-8B",
    "Llama-3.1-8B int8 cache",
    "Llama-3.1-8B fp8 cache",
    "Llama-3.1-8B float16",
    "Gemma-2-2B",
    "phi-2",
    "Phi-3-mini",
    "gpt-oss-20b",
)
DISTINCT_SHAPES = tuple(shape for shape in ATTENTION_SHAPES if shape.name in _DISTINCT)
"""One shape of each head_dim, format and option, for runs that must not take long."""
assert len(DISTINCT_SHAPES) == len(_DISTINCT)

WHOLE_SHAPES = ATTENTION_SHAPES + tuple(
    dataclasses.replace(shape, name=f"{shape.name} float32", cache_dtype="float32")
    for shape in ATTENTION_SHAPES
    if shape.cache_dtype == "bfloat16"
)
"""The whole table, and its shapes in float32, where a kernel has to be exact."""

# By the format of the result: what a kernel may differ from its twin by, relative and absolute.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-2}


def reduced(shape: AttentionShape, *, num_kv_heads: int = 2, window: int = 37) -> AttentionShape:
    """A model's shape with its own group and head_dim, but fewer kv heads and a short window."""
    K = min(shape.num_kv_heads, num_kv_heads)
    return dataclasses.replace(
        shape,
        num_heads=K * shape.num_heads // shape.num_kv_heads,
        num_kv_heads=K,
        window=shape.window and min(shape.window, window),
    )


def decode_lens(page_size: int) -> list[int]:
    """Contexts at every edge of pages and tiles, and rows that are not used."""
    return [0, 1, page_size - 1, page_size, page_size + 1, 129, 0, 8 * page_size]


def mixed_lens(page_size: int) -> tuple[list[int], list[int]]:
    """Query and context lengths of one call.

    Decodes, rows that verify 1 to 7 drafts, chunks after a cached prefix, whole prompts, and a row
    that is not used.
    """
    rows = [
        (1, page_size),
        (1, 1),
        (2, page_size + 1),
        (8, 4 * page_size),
        (5, 5),
        (page_size - 1, page_size - 1),
        (page_size + 1, 3 * page_size),
        (70, 8 * page_size),
        (page_size, page_size),
        (0, 0),
    ]
    return [query for query, _ in rows], [max(pair) for pair in rows]


def scores_of(shape: AttentionShape) -> Scores:
    """What the shape's model makes of products."""
    return Scores(shape.head_dim**-0.5, shape.window, shape.soft_cap)


class Layout(NamedTuple):
    """Where the tokens of rows are, as arrays of numpy.

    Attributes:
        page_table: int32 `[B, width]`.
        is_owned: bool `[P, page_size]`: whether a row's token stands there.
        query_start: int32 `[B + 1]`.
        context_lens: int32 `[B]`.
    """

    page_table: np.ndarray
    is_owned: np.ndarray
    query_start: np.ndarray
    context_lens: np.ndarray


def layout(
    rng: np.random.Generator,
    query_lens: Sequence[int],
    context_lens: Sequence[int],
    *,
    page_size: int,
    max_pages: int | None = None,
    num_shared: int = 0,
) -> Layout:
    """Scatters rows over pages in random order; the arguments are those of `case`."""
    B = len(query_lens)
    width = max_pages or -(-max([*context_lens, 1]) // page_size) + 2
    total = 1 + B * width
    free = rng.permutation(np.arange(1, total)).reshape(B, width)
    table = np.zeros((B, width), np.int32)
    is_owned = np.zeros((total, page_size), bool)
    for b, context in enumerate(context_lens):
        for i in range(-(-context // page_size)):
            is_shared = i < num_shared and (i + 1) * page_size <= context
            table[b, i] = free[0 if is_shared else b, i]
            is_owned[table[b, i], : context - i * page_size] = True
    starts = np.cumsum([0, *query_lens], dtype=np.int32)
    return Layout(table, is_owned, starts, np.asarray(context_lens, np.int32))


def case(
    shape: AttentionShape,
    query_lens: list[int],
    context_lens: list[int],
    *,
    seed: int = 0,
    page_size: int = 16,
    num_tokens: int | None = None,
    max_pages: int | None = None,
    num_shared: int = 0,
) -> Operands:
    """A batch of rows with these lengths.

    Everything that no row owns is NaN: pages, slots behind a context, scales of unowned pages. A
    cache of int8, which has no NaN, has its largest number there.

    Args:
        shape: Heads and formats.
        query_lens: Query tokens of each row.
        context_lens: Tokens of context of each row.
        seed: Of the random numbers.
        page_size: Tokens of a page.
        num_tokens: T; the sum of query_lens if None.
        max_pages: Width of the page table; what the longest row needs, and 2, if None.
        num_shared: Leading pages that rows share, as far as all of the page is in their context.
    """
    rng = np.random.default_rng(seed)
    table, live, query_start, lens = layout(
        rng,
        query_lens,
        context_lens,
        page_size=page_size,
        max_pages=max_pages,
        num_shared=num_shared,
    )
    K, H = shape.num_kv_heads, shape.head_dim
    T = sum(query_lens) if num_tokens is None else num_tokens
    q_dtype = "bfloat16" if shape.is_quantized else shape.cache_dtype
    k, v = (_pages(rng, live, (K, H), shape.cache_dtype) for _ in range(2))
    scales: list[jax.Array | None] = [None, None]
    if shape.is_quantized:
        top = 127 if shape.cache_dtype == "int8" else 448
        owned = np.asarray(live.any(axis=1))[:, None]
        scales = [
            jnp.asarray(
                np.where(owned, rng.uniform(1, 3, (len(live), K)) / top, np.nan), jnp.float32
            )
            for _ in range(2)
        ]
    return Operands(
        jnp.asarray(rng.standard_normal((T, shape.num_heads, H)), q_dtype),
        k,
        v,
        jnp.asarray(table),
        jnp.asarray(query_start),
        jnp.asarray(lens),
        jnp.linspace(-1, 2, shape.num_heads) if shape.has_sinks else None,
        *scales,
    )


def _pages(
    rng: np.random.Generator, live: np.ndarray, heads: tuple[int, int], dtype: str
) -> jax.Array:
    """Pages `[P, page_size, K, H]`, poisoned where no row's token stands: live `[P, page_size]`."""
    values = rng.standard_normal((*live.shape, *heads))
    if dtype == "int8":
        values = np.clip(np.round(values * 40), -127, 127)
    elif dtype == "float8_e4m3fn":
        values = np.clip(values * 140, -448, 448)
    poison = 127 if dtype == "int8" else np.nan  # int8 has no NaN: its scales have
    values = np.where(live[:, :, None, None], values, poison)
    return jnp.asarray(jnp.asarray(values, jnp.float32), dtype)


@partial(jax.jit, static_argnames="scores")
def expected(operands: Operands, scores: Scores) -> jax.Array:
    """What the twin computes."""
    arrays = operands._asdict() | {"q": operands.q.astype(jnp.float32)}
    return op.reference(**arrays, **scores._asdict())


def worst(got: jax.Array, operands: Operands, scores: Scores) -> float:
    """Largest error at the tokens that rows have, as a part of what is tolerated; inf for NaN.

    An element may be off by tolerance * (1 + |expected|).
    """
    num_tokens = int(operands.query_start[-1])
    want = np.asarray(expected(operands, scores))[:num_tokens]
    assert np.isfinite(want).all()
    values = np.asarray(got[:num_tokens].astype(jnp.float32))
    tolerated = TOLERANCE[operands.q.dtype.name] * (1 + np.abs(want))
    errors = np.abs(values - want) / tolerated
    return float(np.nan_to_num(errors, nan=np.inf).max(initial=0.0))
