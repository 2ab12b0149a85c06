"""A step updates the cache in place: no compiled program for CPUs holds a copy as large as it.

XLA copies where it cannot see that one layer has read before the next one writes, and where it
gives an array that was reshaped another layout of the same bytes. The latter depends on sizes:
with one kv head a device, and pages of 16 tokens or more.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax.numpy as jnp
import pytest

from rtpjax.engine.batch import Bucket
from rtpjax.models import Precision
from rtpjax.plan.step import StepShape, abstract_arguments, caches_of, forward
from rtpjax.sharding import make_mesh
from tests.rtpjax.engine import tiny

DECODE, EXTEND = Bucket("decode", 2, 2), Bucket("extend", 32, 2)


@pytest.mark.parametrize(
    ("num_kv_heads", "tp_size", "page_size", "bucket", "cache_format"),
    [
        (1, 1, 32, DECODE, jnp.float32),
        (1, 1, 32, EXTEND, jnp.float32),
        (1, 1, 16, DECODE, jnp.float32),
        (2, 2, 32, DECODE, jnp.float32),
        (2, 2, 32, DECODE, jnp.int8),
        (4, 2, 32, EXTEND, jnp.float32),
    ],
)
def test_no_copy_is_as_large_as_the_cache(num_kv_heads, tp_size, page_size, bucket, cache_format):
    model = dataclasses.replace(tiny.MODEL, num_key_value_heads=num_kv_heads, head_dim=64)
    precision = Precision(jnp.float32, jnp.float32, cache_format)
    mesh = make_mesh(tp_size, model=model)
    shape = StepShape(bucket, 16 * page_size, page_size, 257, 32)
    text = (
        forward(model, precision, shape, mesh)
        .lower(*abstract_arguments(model, precision, shape, mesh))
        .compile()
        .as_text()
    )
    pages = caches_of(model, precision, shape, mesh).arrays[0].k_pages
    size = math.prod(pages.sharding.shard_shape(pages.shape))
    copies = re.findall(r"= \w+\[([\d,]+)\]\S* copy\(", text)
    assert copies  # of other things: or this finds nothing
    assert max(math.prod(map(int, copy.split(","))) for copy in copies) < size
