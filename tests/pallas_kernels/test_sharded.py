"""Attention with heads split over four devices gives what one device gives."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import sharded
from pallas_kernels.cases import (
    WHOLE_SHAPES,
    case,
    decode_lens,
    mixed_lens,
    reduced,
    scores_of,
)
from pallas_kernels.paged_decode import paged_decode
from pallas_kernels.paged_prefill import paged_prefill
from pallas_kernels.paged_tiles import Operands, Scores
from pallas_kernels.shapes import AttentionShape
from tests.pallas_kernels.shapes import assert_matches

SHAPE = AttentionShape("gpt-oss-like", 8, 4, 16, has_sinks=True, cache_dtype="int8")
SCORES = Scores(0.25, 20, None)


def mesh(num_devices):
    devices = Mesh(np.asarray(jax.devices()[:num_devices]), ("tp",))
    return sharded.MeshAxes(devices, ("tp",), ("tp",))


def run(operands, num_devices, attention):
    arrays = operands._asdict()
    return jax.jit(
        partial(sharded.sharded_paged_attention, mesh(num_devices), attention=attention)
    )(**arrays)


@pytest.mark.parametrize(
    ("kernel", "query_lens"), [(paged_decode, [1, 1, 1]), (paged_prefill, [1, 12, 3])]
)
def test_kernels_on_four_devices(kernel, query_lens):
    def attention(*arrays, sinks, k_scales, v_scales):
        operands = Operands(*arrays, sinks, k_scales, v_scales)
        assert operands.q.shape[1:] == (2, 16)
        assert operands.k_pages.shape[2] == 1
        return kernel(operands, SCORES, interpret=True)

    operands = case(SHAPE, query_lens, [40, 12, 17])
    got = run(operands, 4, attention)
    assert got.sharding.spec[1] == "tp"
    assert_matches(got, operands, SCORES)


SPLIT_IN_FOUR = [shape for shape in WHOLE_SHAPES if shape.num_kv_heads % 4 == 0]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [paged_decode, paged_prefill])
@pytest.mark.parametrize("shape", SPLIT_IN_FOUR, ids=lambda s: s.name)
def test_shapes_of_models_on_four_devices(shape, kernel):
    """A kv head on each device, of which every one has its own heads' sinks and scales."""
    shape = reduced(shape, num_kv_heads=4)
    scores = scores_of(shape)
    query_lens, contexts = mixed_lens(16)
    if kernel is paged_decode:
        query_lens, contexts = [1] * 8, decode_lens(16)

    def attention(*arrays, sinks, k_scales, v_scales):
        return kernel(Operands(*arrays, sinks, k_scales, v_scales), scores, interpret=True)

    operands = case(shape, query_lens, contexts, num_shared=2)
    assert_matches(run(operands, 4, attention), operands, scores)


@pytest.mark.parametrize("num_devices", [1, 2])
def test_the_op_takes_its_options(num_devices):
    operands = case(SHAPE, [1, 12, 3], [40, 12, 17])
    got = jax.jit(
        lambda o: sharded.sharded_paged_attention(
            mesh(num_devices), **o._asdict(), **SCORES._asdict(), implementation="xla"
        )
    )(operands)
    assert_matches(got, operands, SCORES)


def test_heads_that_cannot_be_split():
    operands = case(AttentionShape("odd", 6, 3, 16), [1], [1])
    with pytest.raises(ValueError, match="3 kv heads cannot be split over the 2 devices"):
        run(operands, 2, None)
