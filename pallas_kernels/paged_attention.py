"""Attention of a ragged batch of query tokens over a paged cache.

    rows       [ 0 ][ 1 ][ 2 ][------ 3 ------][--- 4 ---]     leading rows of one token are decodes
    tokens       0    1    2    3  4  5  6  7    8  9  10      query_start = [0, 1, 2, 3, 8, 11]
    pages      page_table[b] lists row b's pages; token s stands in page_table[b, s // page_size]

A row's query tokens are the last ones of its context, and attend causally. What a page holds beyond
a row's context, and what stands in pages it does not own, never reaches its result, NaN included.

Implementations share one signature: `paged_attention` below documents it, `reference` is the plain
twin that says what is meant, `pallas` serves on NVIDIA GPUs, and `xla` where it does not. `mosaic`
does rows of several tokens with Hopper's own instructions, if it is named.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.paged_decode import paged_decode
from pallas_kernels.paged_prefill import paged_prefill
from pallas_kernels.paged_tiles import (
    MASKED,
    QUANTIZED_CACHES,
    Operands,
    Scores,
    check_supported,
)
from pallas_kernels.registry import Op, Target, expect, refuse


def _check(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    **options: object,
) -> None:
    """What every implementation asks of the shapes; `paged_attention` documents them.

    Raises:
        ValueError: Names the argument, what it is and what it should be.
    """
    check = partial(expect, OP.name)
    check("q", q, ("T", "N", "H"))
    check("k_pages", k_pages, ("P", "page_size", "K", "H"))
    check("page_table", page_table, ("B", "max_pages"), jnp.int32)
    (P, _, K, H), B = k_pages.shape, page_table.shape[0]
    check("q", q, (*q.shape[:2], H))
    check("v_pages", v_pages, k_pages.shape)
    check("query_start", query_start, (B + 1,), jnp.int32)
    check("context_lens", context_lens, (B,), jnp.int32)
    if sinks is not None:
        check("sinks", sinks, (q.shape[1],))
    for name, scales in (("k_scales", k_scales), ("v_scales", v_scales)):
        if scales is not None:
            check(name, scales, (P, K))
    if q.shape[1] % K:
        raise ValueError(
            f"{OP.name}: {q.shape[1]} query heads are no multiple of {K} kv heads; each kv head "
            "serves the same number of query heads."
        )
    is_quantized = k_pages.dtype in (*QUANTIZED_CACHES, jnp.uint8)  # bits of float8_e4m3fn
    if (k_scales is None, v_scales is None) != (not is_quantized, not is_quantized):
        raise ValueError(
            f"{OP.name}: a cache of {k_pages.dtype} {'needs' if is_quantized else 'has no'} "
            "k_scales and v_scales."
        )
    if options.get("decode") and q.shape[0] != B:
        raise ValueError(
            f"{OP.name}: a decode has one token a row; q has {q.shape[0]} tokens and page_table "
            f"{B} rows."
        )


OP = Op("paged_attention", _check)

DECODE_ROWS = 16  # rows a decode tile works on at once
QUERY_TILE = 64  # query tokens a prefill tile works on at once
CONTEXT_TILE = 64  # tokens of context a tile reads at once


def paged_attention(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    decode: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of each query token over its row's context.

    Args:
        q: `[T, N, H]`; N is a multiple of K (grouped-query attention).
        k_pages: `[P, page_size, K, H]`.
        v_pages: Like k_pages.
        page_table: int32 `[B, max_pages]`; unused entries name any page (0 by habit).
        query_start: int32 `[B + 1]`, not decreasing; row b's tokens are
            query_start[b]:query_start[b + 1].
        context_lens: int32 `[B]`; tokens of context including the row's query tokens, 0 for unused
            rows.
        scale: Multiplies the scores.
        window: A token attends to this many tokens, itself included; None for all.
        soft_cap: Scores become soft_cap * tanh(score / soft_cap) (Gemma 2,
            https://arxiv.org/abs/2408.00118).
        sinks: float32 `[N]`, a score per head that takes part in the softmax and has no value
            (gpt-oss; https://arxiv.org/abs/2309.17453).
        k_scales: float32 `[P, K]` for a cache in int8 or float8_e4m3fn: what multiplies the numbers
            of a page and kv head. XLA's implementations also take float8_e4m3fn as bits in uint8.
        v_scales: Like k_scales.
        decode: Every row has exactly one token (T == B); compiles to less.
        implementation: A name from the registry, or None for the platform's default.

    Returns:
        `[T, N, H]` in q's dtype, accumulated in float32. Tokens of no row have an unspecified
        value.
    """
    return OP(
        q,
        k_pages,
        v_pages,
        page_table,
        query_start,
        context_lens,
        scale=scale,
        window=window,
        soft_cap=soft_cap,
        sinks=sinks,
        k_scales=k_scales,
        v_scales=v_scales,
        decode=decode,
        implementation=implementation,
    )


class _Softmax(NamedTuple):
    """A softmax-weighted sum in progress (https://arxiv.org/abs/1805.02867), all float32.

    Attributes:
        maximum: `[..., Q]`, largest score so far.
        total: `[..., Q]`, sum of exp(score - maximum).
        weighted: `[..., Q, H]`, sum of exp(score - maximum) * value.
    """

    maximum: jax.Array
    total: jax.Array
    weighted: jax.Array

    @staticmethod
    def start(sink: jax.Array, width: int) -> _Softmax:
        """sink `[..., Q]`: a first score that has no value, MASKED for none."""
        total = jnp.where(sink > MASKED, 1.0, 0.0)
        return _Softmax(sink, total, jnp.zeros((*sink.shape, width), jnp.float32))

    def add(self, scores: jax.Array, values: jax.Array) -> _Softmax:
        """Takes in scores `[..., Q, S]` and values `[..., S, H]`."""
        maximum = jnp.maximum(self.maximum, scores.max(-1))
        keep = jnp.exp(self.maximum - maximum)
        weights = jnp.exp(scores - maximum[..., None])
        return _Softmax(
            maximum,
            self.total * keep + weights.sum(-1),
            self.weighted * keep[..., None] + jnp.einsum("...qs,...sh->...qh", weights, values),
        )

    def result(self) -> jax.Array:
        """`[..., Q, H]`; a row that attended to nothing is 0."""
        return self.weighted / jnp.maximum(self.total, 1e-30)[..., None]


def _soft_capped(scores: jax.Array, soft_cap: float | None) -> jax.Array:
    return scores if soft_cap is None else soft_cap * jnp.tanh(scores / soft_cap)


def as_float32(values: jax.Array) -> jax.Array:
    """Cached numbers, scales aside; those of dtype uint8 are the bits of float8_e4m3fn."""
    if values.dtype == jnp.uint8:
        values = lax.bitcast_convert_type(values, jnp.float8_e4m3fn)
    return values.astype(jnp.float32)


def _dequantized(values: jax.Array, scales: jax.Array | None, pages: jax.Array) -> jax.Array:
    """float32 of pages' values `[..., page_size, K, H]`, with scales `[P, K]` of pages `[...]`."""
    values = as_float32(values)
    return values if scales is None else values * scales[pages][..., None, :, None]


def _dequantized_heads(values: jax.Array, scales: jax.Array | None, pages: jax.Array) -> jax.Array:
    """float32 of values `[K, S, H]` that stand in pages `[S / page_size]`, with scales `[P, K]`."""
    values = as_float32(values)
    if scales is None:
        return values
    return values * jnp.repeat(scales[pages].T, values.shape[1] // pages.size, axis=1)[:, :, None]


class _Cache(NamedTuple):
    """Arguments that every tile of the `xla` implementation reads."""

    k_pages: jax.Array
    v_pages: jax.Array
    k_scales: jax.Array | None
    v_scales: jax.Array | None
    window: int | None
    soft_cap: float | None

    @property
    def tile_pages(self) -> int:
        return max(1, CONTEXT_TILE // self.k_pages.shape[1])

    @property
    def tile_len(self) -> int:
        return self.tile_pages * self.k_pages.shape[1]

    def tiles(self, first_position: jax.Array, end: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Range of context tiles for a query from first_position on and a context of end tokens."""
        oldest = jnp.int32(0)
        if self.window is not None:
            oldest = jnp.maximum(first_position - self.window + 1, 0)
        return oldest // self.tile_len, -(-end // self.tile_len)

    def is_seen(self, at: jax.Array, position: jax.Array) -> jax.Array:
        """Whether the query token at a position attends to the token at `at`."""
        seen = at <= position
        return seen if self.window is None else seen & (at > position - self.window)


def _supports(
    target: Target,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    *_: jax.Array,
    **__: object,
) -> None:
    check_supported(target, q, k_pages, v_pages)


@OP.register("pallas", "gpu", supports=_supports)
def pallas(
    *arrays: jax.Array,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    decode: bool = False,
    interpret: bool = False,
) -> jax.Array:
    """The kernels of paged_decode and paged_prefill; interpret runs them on the CPU, for tests."""
    operands = Operands(*arrays, sinks=sinks, k_scales=k_scales, v_scales=v_scales)
    kernel = paged_decode if decode else paged_prefill
    return kernel(operands, Scores(scale, window, soft_cap), interpret=interpret)


def _supports_mosaic(
    target: Target,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    *_: jax.Array,
    decode: bool = False,
    **__: object,
) -> None:
    capability = target.compute_capability
    hopper = "90 (Hopper: wgmma and TMA)"
    refuse("pallas", (capability == 90, f"compute capability {capability}", hopper))
    check_supported(target, q, k_pages, v_pages)
    if decode:
        return
    page_size, head_dim = k_pages.shape[1], q.shape[2]
    half = (jnp.bfloat16, jnp.float16)
    refuse(
        "pallas",
        (head_dim in (64, 128), f"head_dim {head_dim}", "64 and 128"),
        (
            q.dtype in half and k_pages.dtype == q.dtype,
            f"q of {q.dtype} and a cache of {k_pages.dtype}",
            "bfloat16 and float16, the same in both",
        ),
        (
            page_size >= 8 and page_size & (page_size - 1) == 0,
            f"page size {page_size}",
            "powers of two from 8 on",
        ),
    )


@OP.register("mosaic", "gpu", supports=_supports_mosaic, is_automatic=False)
def mosaic(
    *arrays: jax.Array,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    decode: bool = False,
) -> jax.Array:
    """The kernel of paged_prefill_mosaic for Hopper; decodes are those of `pallas`."""
    operands = Operands(*arrays, sinks=sinks, k_scales=k_scales, v_scales=v_scales)
    scores = Scores(scale, window, soft_cap)
    if decode:
        return paged_decode(operands, scores)
    # Imported when called: Mosaic GPU takes seconds to import, and few servers ask for it.
    from pallas_kernels.paged_prefill_mosaic import paged_prefill_mosaic

    return paged_prefill_mosaic(operands, scores)


@OP.register("xla", "cpu", "gpu")
def xla(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    decode: bool = False,
) -> jax.Array:
    """Loops over tiles with bounds that follow the live lengths: the table's width costs nothing.

    Leading single-token rows go DECODE_ROWS at a time, the others QUERY_TILE tokens at a time. A
    tile may write past its row: what it spoils there is written by a later tile. Sort decode rows
    by context length, so that the rows of a tile need the same number of context tiles.
    """
    T, N = q.shape[:2]
    B = page_table.shape[0]
    cache = _Cache(k_pages, v_pages, k_scales, v_scales, window, soft_cap)
    tile_rows = min(B, DECODE_ROWS)
    num_rows = -(-B // tile_rows) * tile_rows
    room = num_rows if decode else max(T + QUERY_TILE, num_rows)
    table = jnp.pad(page_table, ((0, num_rows - B), (0, -page_table.shape[1] % cache.tile_pages)))
    padded_q = jnp.pad(q.astype(jnp.float32) * scale, ((0, room - T), (0, 0), (0, 0)))
    sink = jnp.full((N,), MASKED) if sinks is None else sinks.astype(jnp.float32)

    query_lens = query_start[1:] - query_start[:-1]
    num_decodes = jnp.cumprod((query_lens == 1).astype(jnp.int32)).sum()
    decode_lens = jnp.where(jnp.arange(B) < num_decodes, context_lens, 0)
    decode_lens = jnp.pad(decode_lens, (0, num_rows - B))

    def decode_tile(i: jax.Array, out: jax.Array) -> jax.Array:
        at = i * tile_rows
        tile_q, tile_table, tile_lens = (
            lax.dynamic_slice_in_dim(x, at, tile_rows) for x in (padded_q, table, decode_lens)
        )
        result = _decode_tile(cache, tile_q, tile_table, tile_lens, sink)
        return lax.dynamic_update_slice_in_dim(out, result, at, 0)

    out = lax.fori_loop(0, -(-num_decodes // tile_rows), decode_tile, jnp.zeros_like(padded_q))
    if decode:
        return out[:T].astype(q.dtype)

    def prefill_row(b: jax.Array, out: jax.Array) -> jax.Array:
        first_position = context_lens[b] - query_lens[b]

        def tile(i: jax.Array, out: jax.Array) -> jax.Array:
            at = query_start[b] + i * QUERY_TILE
            tile_q = lax.dynamic_slice_in_dim(padded_q, at, QUERY_TILE)
            position = first_position + i * QUERY_TILE
            result = _prefill_tile(cache, tile_q, table[b], position, context_lens[b], sink)
            return lax.dynamic_update_slice_in_dim(out, result, at, 0)

        return lax.fori_loop(0, -(-query_lens[b] // QUERY_TILE), tile, out)

    out = lax.fori_loop(num_decodes, (query_lens > 0).sum(), prefill_row, out)
    return out[:T].astype(q.dtype)


def _decode_tile(
    cache: _Cache, q: jax.Array, table: jax.Array, lens: jax.Array, sink: jax.Array
) -> jax.Array:
    """One token of each of R rows: q `[R, N, H]`, table `[R, pages]`, lens `[R]` -> `[R, N, H]`.

    Each head's query stands in its kv head's columns of a row `[K * H]` that is zero elsewhere, so
    one product a row does all heads. It does K times the arithmetic; the CPU prefers that to K
    products.
    """
    R, N, H = q.shape
    K = cache.k_pages.shape[2]
    own = jnp.repeat(jnp.eye(K), N // K, axis=0)[None, :, :, None]  # [1, N, K, 1]
    wide_q = (q[:, :, None, :] * own).reshape(R, N, K * H)

    def body(i: jax.Array, state: _Softmax) -> _Softmax:
        pages = lax.dynamic_slice_in_dim(table, i * cache.tile_pages, cache.tile_pages, axis=1)
        at = i * cache.tile_len + jnp.arange(cache.tile_len)[None, :]
        seen = cache.is_seen(at, lens[:, None] - 1)
        k, v = (
            _dequantized(x[pages], scales, pages).reshape(R, -1, K * H)
            for x, scales in ((cache.k_pages, cache.k_scales), (cache.v_pages, cache.v_scales))
        )
        scores = _soft_capped(jnp.einsum("rnd,rsd->rns", wide_q, k), cache.soft_cap)
        scores = jnp.where(seen[:, None, :], scores, MASKED)
        return state.add(scores, jnp.where(seen[:, :, None], v, 0.0))

    first, end = cache.tiles(
        jnp.where(lens > 0, lens, jnp.iinfo(jnp.int32).max).min() - 1, lens.max()
    )
    start = _Softmax.start(jnp.broadcast_to(sink[None, :], (R, N)), K * H)
    wide = lax.fori_loop(first, end, body, start).result()
    return (wide.reshape(R, N, K, H) * own).sum(2)


def _prefill_tile(
    cache: _Cache,
    q: jax.Array,
    table: jax.Array,
    position: jax.Array,
    context_len: jax.Array,
    sink: jax.Array,
) -> jax.Array:
    """Consecutive tokens of a row, from a position on: q `[T, N, H]`, table `[pages]` -> like q."""
    T, N, H = q.shape
    page_size, K = cache.k_pages.shape[1:3]
    G = N // K
    grouped_q = q.reshape(T, K, G, H).transpose(1, 2, 0, 3).reshape(K, G * T, H)
    end = jnp.minimum(context_len, position + T)

    def body(i: jax.Array, state: _Softmax) -> _Softmax:
        pages = lax.dynamic_slice_in_dim(table, i * cache.tile_pages, cache.tile_pages)
        slots = (pages[:, None] * page_size + jnp.arange(page_size)[None, :]).reshape(1, -1)
        rows = slots * K + jnp.arange(K)[:, None]  # [K, S]: a copy that already has heads first
        k, v = (
            _dequantized_heads(x.reshape(-1, H)[rows], scales, pages)
            for x, scales in ((cache.k_pages, cache.k_scales), (cache.v_pages, cache.v_scales))
        )
        at = i * cache.tile_len + jnp.arange(cache.tile_len)
        seen = cache.is_seen(at[None, :], position + jnp.arange(T)[:, None]) & (at < end)[None, :]
        scores = _soft_capped(jnp.einsum("kqh,ksh->kqs", grouped_q, k), cache.soft_cap)
        scores = jnp.where(seen[None, None], scores.reshape(K, G, T, -1), MASKED)
        # What no token of the tile sees may be anything, where pages were given back even NaN.
        is_near = cache.is_seen(at, position) | ((at >= position) & (at < end))
        v = jnp.where(is_near[None, :, None], v, 0.0)
        return state.add(scores.reshape(K, G * T, -1), v)

    start = _Softmax.start(jnp.repeat(sink.reshape(K, G), T, axis=1), H)
    first, last = cache.tiles(position, end)
    result = lax.fori_loop(first, last, body, start).result()
    return result.reshape(K, G, T, H).transpose(2, 0, 1, 3).reshape(T, N, H)


@OP.register("reference", "cpu", "gpu")
def reference(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    scale: float,
    window: int | None = None,
    soft_cap: float | None = None,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    decode: bool = False,
) -> jax.Array:
    """The plain twin: gathers every row's whole table and makes all scores at once."""
    T, N, H = q.shape
    B, K = page_table.shape[0], k_pages.shape[2]
    k, v = (
        _dequantized(x[page_table], scales, page_table).reshape(B, -1, K, H)
        for x, scales in ((k_pages, k_scales), (v_pages, v_scales))
    )
    token = jnp.arange(T)
    row = jnp.searchsorted(query_start[1:], token, side="right").clip(0, B - 1)
    position = context_lens[row] - query_start[row + 1] + token
    at = jnp.arange(k.shape[1])[None, :]
    seen = (at <= position[:, None]) & (at < context_lens[row][:, None])
    if window is not None:
        seen &= at > position[:, None] - window
    grouped_q = q.reshape(T, K, N // K, H).astype(jnp.float32)
    scores = _soft_capped(jnp.einsum("tkgh,tskh->tkgs", grouped_q, k[row]) * scale, soft_cap)
    scores = jnp.where(seen[:, None, None, :], scores, MASKED)
    sink = jnp.full((N,), MASKED) if sinks is None else sinks.astype(jnp.float32)
    sink = jnp.broadcast_to(sink.reshape(1, K, -1, 1), (*scores.shape[:3], 1))
    weights = jax.nn.softmax(jnp.concatenate([scores, sink], axis=-1), axis=-1)[..., :-1]
    v = jnp.where(seen[:, :, None, None], v[row], 0.0)
    return jnp.einsum("tkgs,tskh->tkgh", weights, v).reshape(T, N, H).astype(q.dtype)
