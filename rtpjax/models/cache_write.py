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
from rtpjax.models.cache import LayerCache, PagedCache
from rtpjax.models.step import StepInputs


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


def write(cache: LayerCache, k: jax.Array, v: jax.Array, step: StepInputs) -> PagedCache:
    """The layer's pages with the step's keys and values, in place if they are donated.

    Args:
        cache: The layer's, which says where they go.
        k: `[T, K, H]`.
        v: Like k.
        step: The batch.
    """
    pages, slots = cache.pages, cache.slots
    if pages.k_scales is None:
        k_pages, v_pages = (
            scatter(array, values.astype(array.dtype), slots)
            for array, values in ((pages.k_pages, k), (pages.v_pages, v))
        )
        return PagedCache(k_pages, v_pages)
    operands = Operands(*pages, k, v, slots, step.query_start)
    if step.kind == "decode":
        return PagedCache(*sharded_quantized_write(step.mesh, operands))
    # The kernel would write the many tokens of a page one after another.
    return PagedCache(*quantized_write(operands, implementation="xla"))
