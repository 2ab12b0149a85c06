"""Building blocks: formats, and that the cache is written in place."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import nnx

from rtpjax.models import layers
from rtpjax.models.weight_formats import PLAIN


def test_product_accumulates_in_float32():
    x = jnp.full((2, 4096), 1.0, jnp.float32)
    weight = jnp.full((3, 4096), 1.0 + 2**-7, jnp.bfloat16)
    y = PLAIN.product(x, {"weight": weight})
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(y, 4096 * (1 + 2**-7))  # 4128: bf16 would give 4128 +- 16


def test_linear_answers_in_the_format_of_its_input():
    linear = layers.Linear((3, 8), ("mlp", "embed"), jnp.bfloat16, bias=True, rngs=nnx.Rngs(0))
    for dtype in (jnp.float32, jnp.bfloat16):
        assert linear(jnp.ones((2, 8), dtype)).dtype == dtype


def test_rms_norm_computes_in_float32():
    norm = layers.RMSNorm(4, "embed", jnp.bfloat16, eps=0.0, rngs=nnx.Rngs(0))
    # The squares overflow float16.
    y = norm(jnp.array([[1000.0, -1000.0, 1000.0, 1000.0]], jnp.float16)).value
    np.testing.assert_array_equal(y, np.array([[1, -1, 1, 1]], np.float16))


def test_parameters_keep_their_axes():
    linear = layers.Linear((3, 8), ("mlp", "embed"), jnp.float32, bias=True, rngs=nnx.Rngs(0))
    assert linear.weight.get_metadata("axes") == ("mlp", "embed")
    assert linear.bias is not None
    assert linear.bias.get_metadata("axes") == ("mlp",)
