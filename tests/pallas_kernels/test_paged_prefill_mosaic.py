"""The Hopper kernel, interpreted with its memory, copies and barriers, against the plain twin.

JAX's interpreter compiles every program of the grid anew, so cases have few tiles and are slow.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

# JAX exports no name for this yet; only tests interpret.
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import paged_attention
from pallas_kernels.cases import case
from pallas_kernels.paged_prefill_mosaic import paged_prefill_mosaic
from pallas_kernels.paged_tiles import Scores
from pallas_kernels.registry import Target, tracing_for
from pallas_kernels.shapes import ATTENTION_SHAPES, AttentionShape
from tests.pallas_kernels.shapes import assert_matches

MOSAIC_SHAPES = [s for s in ATTENTION_SHAPES if s.head_dim in (64, 128) and not s.is_quantized]


def check(shape, query_lens, context_lens, scores, **options):
    """Raises for reads out of bounds; memory that nothing has written is NaN."""
    operands = case(shape, query_lens, context_lens, **options)
    got = paged_prefill_mosaic(operands, scores, interpret=InterpretGPUParams())
    assert got.dtype == operands.q.dtype
    assert_matches(got, operands, scores)


@pytest.mark.slow
def test_a_chunk_after_a_prefix_over_many_pages():
    """Two tiles; masked and unmasked steps, more of them than the ring has places."""
    check(AttentionShape("", 2, 1, 128), [70], [500], Scores(0.1, None, None), page_size=32)


@pytest.mark.slow
def test_window_soft_cap_and_sinks():
    """Pages before the window are NaN to this row: the shared ones have another row's tokens."""
    shape = AttentionShape("", 3, 1, 64, has_sinks=True, cache_dtype="float16")
    check(shape, [5, 0], [300, 0], Scores(0.2, 140, 5.0), page_size=256)


@pytest.mark.slow
def test_a_decode_row_and_a_row_that_verifies_drafts():
    check(AttentionShape("", 7, 1, 64), [1, 4], [129, 133], Scores(0.2, None, None), num_shared=8)


@pytest.mark.parametrize("shape", MOSAIC_SHAPES, ids=lambda s: s.name)
def test_lowers_for_hopper(shape):
    """Layouts are inferred and wgmma is lowered when the program is lowered for CUDA."""
    operands = jax.eval_shape(lambda: case(shape, [9, 40], [100, 40], page_size=64))
    scores = Scores(0.1, shape.window, shape.soft_cap)

    def attention(arrays):
        named = arrays._asdict()
        return paged_attention.paged_attention(**named, **scores._asdict(), implementation="mosaic")

    with tracing_for(Target("gpu", 90)):
        traced = jax.jit(attention).trace(operands)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "mosaic_gpu" in text
    assert jnp.dtype(operands.q.dtype).itemsize == 2
