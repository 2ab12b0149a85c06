"""Writes a step's keys and values into the paged cache, of any format.

Only the page of a row's first new token can hold older tokens of the row. Full pages, the only ones
that rows share, are never written again. Rows may be neighbours in one sequence and go into the
same page. pallas_kernels/quantized_write.py says what becomes of the scales of a quantized cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from pallas_kernels.quantized_write import LARGEST, Operands, quantized_write, scatter
from pallas_kernels.sharded import sharded_quantized_write
from rtpjax.models.step import PagedCache, StepInputs


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


def write(cache: PagedCache, k: jax.Array, v: jax.Array, step: StepInputs) -> PagedCache:
    """The cache with the step's keys and values, in place if it is donated.

    Args:
        cache: Some layers'.
        k: `[T, K, H]`.
        v: Like k.
        step: Says where they go.
    """
    if cache.k_scales is None:
        k_pages, v_pages = (
            scatter(pages, values.astype(pages.dtype), step.slots)
            for pages, values in ((cache.k_pages, k), (cache.v_pages, v))
        )
        return PagedCache(k_pages, v_pages)
    operands = Operands(*cache, k, v, step.slots, step.query_start)
    if step.kind == "decode":
        return PagedCache(*sharded_quantized_write(step.mesh, operands))
    # The kernel would write the many tokens of a page one after another.
    return PagedCache(*quantized_write(operands, implementation="xla"))
