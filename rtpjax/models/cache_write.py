"""Writes a step's keys and values into the paged cache, and keeps the scales of a quantized one.

A page and kv head has one scale for all of its tokens, but tokens come a few at a time:

    step      new tokens    scale of the page             what the page holds before
    extend    0 1 2 3 4     fits the largest of them      nothing of its own: token 0 begins it, and
                                                          the scale it had belongs to who had it
    decode    5             stays: the token is small     stays
    decode    6             grows: the token is larger    times old / new scale, rounded again

Only the page of a row's first new token can hold older tokens of the row, so what grows is at most
one page a row. Full pages, the only ones that rows share, are never written again. Rows may be
neighbours in one sequence: they find the same page and change it alike.

int8: a scale that grows, grows by a quarter at least. That halves how often pages change, and each
change rounds: the sum of their errors is below 0.5 / (1 - 1 / 1.25) = 2.5 steps of the last scale.
float8: scales are powers of two. Its steps are relative, so that this costs no precision, and a
page that changes keeps its numbers as they are (but for those that fall below the smallest one).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.paged_attention import as_float32
from rtpjax.models.step import LayerCache, StepInputs

# The largest number of each format that needs scales. uint8 has the bits of float8_e4m3fn.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "uint8": 448.0}
_LEAST_GROWTH = 1.25


def has_scales(dtype: DTypeLike) -> bool:
    """Whether a cache of this format has scales, float32 `[P, K]`."""
    return jnp.dtype(dtype).name in LARGEST


def stored_as(dtype: DTypeLike, platform: str) -> DTypeLike:
    """The dtype of the arrays of a cache of this format.

    XLA has no gather and no scatter of float8 on the CPU: it would convert the whole cache, and a
    bitcast copies it. So there arrays of uint8 hold its bits.
    """
    is_float8 = jnp.dtype(dtype) == jnp.float8_e4m3fn
    return jnp.uint8 if is_float8 and platform == "cpu" else dtype


def write(cache: LayerCache, k: jax.Array, v: jax.Array, step: StepInputs) -> LayerCache:
    """The cache with the step's keys and values, in place if it is donated.

    Args:
        cache: A layer's.
        k: `[T, K, H]`.
        v: Like k.
        step: Says where they go; in an order in which a page's tokens come one after another.
    """
    k_pages, k_scales = _write(cache.k_pages, cache.k_scales, k, step)
    v_pages, v_scales = _write(cache.v_pages, cache.v_scales, v, step)
    return LayerCache(k_pages, v_pages, k_scales, v_scales)


def _write(
    pages: jax.Array, scales: jax.Array | None, values: jax.Array, step: StepInputs
) -> tuple[jax.Array, jax.Array | None]:
    """pages `[P, page_size, K, H]` and their scales with values `[T, K, H]` at the step's slots."""
    if scales is not None:
        before, scales = _fit(scales, values, pages.dtype, step.slots, pages.shape[1])
        page = step.slots // pages.shape[1]
        pages = _regrown(pages, before, scales, page, step.query_start)
        values = _quantized(values, scales[page], pages.dtype)
    flat = pages.reshape(-1, *pages.shape[2:])
    flat = flat.at[step.slots].set(values.astype(pages.dtype))
    return flat.reshape(pages.shape), scales


def _fit(
    scales: jax.Array, values: jax.Array, dtype: DTypeLike, slots: jax.Array, page_size: int
) -> tuple[jax.Array, jax.Array]:
    """Scales that fit the step's values.

    Returns:
        The scale before of each token's page `[T, K]`, 0 if the page is begun in this step, and
        all scales `[P, K]`.
    """
    page, num_pages = slots // page_size, scales.shape[0]
    begun = jnp.where(slots % page_size == 0, page, num_pages)
    scales = scales.at[begun].set(0.0, mode="drop")
    before = scales[page]
    needed = jnp.abs(values.astype(jnp.float32)).max(-1) / LARGEST[jnp.dtype(dtype).name]
    if jnp.dtype(dtype) == jnp.int8:
        fitting = jnp.maximum(needed, _LEAST_GROWTH * before)
    else:
        fitting = _power_of_two(needed)
    return before, scales.at[page].max(jnp.where(needed > before, fitting, 0.0))


def _power_of_two(x: jax.Array) -> jax.Array:
    """The least power of two that is not below x, for normal float32 numbers; 0 for 0."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    fraction = jnp.int32((1 << 23) - 1)
    return lax.bitcast_convert_type((bits + fraction) & ~fraction, jnp.float32)


def _regrown(
    pages: jax.Array,
    before: jax.Array,
    scales: jax.Array,
    page: jax.Array,
    query_start: jax.Array,
) -> jax.Array:
    """Brings what the pages of the rows' first tokens hold to the scales that these have now.

    Pages that keep their scales are not written; page 0 is read in their place, which is in the
    processor's cache.

    Args:
        pages: `[P, page_size, K, H]`.
        before: float32 `[T, K]`, scales of the tokens' pages as they were; 0 for nothing there.
        scales: float32 `[P, K]`, as they are now.
        page: int32 `[T]`, the tokens' pages.
        query_start: int32 `[B + 1]`.
    """
    first = jnp.minimum(query_start[:-1], page.size - 1)
    old, new = before[first], scales[page[first]]
    grows = ((old > 0) & (new > old)).any(-1) & (query_start[1:] > query_start[:-1])
    ratio = jnp.where(old > 0, old / jnp.where(old > 0, new, 1.0), 0.0)
    held = as_float32(pages[jnp.where(grows, page[first], 0)])
    held = _rounded(held * ratio[:, None, :, None], pages.dtype)
    return pages.at[jnp.where(grows, page[first], pages.shape[0])].set(held, mode="drop")


def _quantized(values: jax.Array, scales: jax.Array, dtype: DTypeLike) -> jax.Array:
    """values `[T, K, H]` in units of scales `[T, K]`; a scale is 0 if all it is for is 0."""
    units = jnp.where(scales > 0, scales, 1.0)
    return _rounded(values.astype(jnp.float32) / units[:, :, None], dtype)


def _rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x in a format of fewer bits; what is too large becomes the largest number, never NaN."""
    largest = LARGEST[jnp.dtype(dtype).name]
    if jnp.dtype(dtype) == jnp.int8:
        return jnp.clip(jnp.round(x), -largest, largest).astype(jnp.int8)
    float8 = jnp.clip(x, -largest, largest).astype(jnp.float8_e4m3fn)
    return lax.bitcast_convert_type(float8, dtype)
