"""Models on quantized caches, beside the same models whose keys and values are rounded by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rtpjax.models import cache_write
from tests.golden import cases
from tests.rtpjax.models.paged_run import PAGE_SIZE, PagedRun, golden_model

LENS = (11, 3, 16)
CASE = "llama"
# uint8 has the bits of float8 (e4m3).
FORMATS = {"int8": (jnp.int8, 127.0), "fp8": (jnp.uint8, 448.0)}


def logits(dtype) -> np.ndarray:
    """Of prompts that are all in one step."""
    run = PagedRun(golden_model(CASE), num_rows=len(LENS), max_len=max(LENS), dtype=dtype)
    prompt = cases.prompt(CASE)
    return np.concatenate(run.step([np.resize(prompt, n) for n in LENS], "extend"))


def rounded(values: jax.Array, page: jax.Array, format_name: str) -> jax.Array:
    """values `[T, K, H]` on the steps of their pages' scales."""
    dtype, largest = FORMATS[format_name]
    most = jax.ops.segment_max(jnp.abs(values).max(-1), page, num_segments=64)[page]
    if dtype == jnp.int8:
        scale = most[:, :, None] / largest
        return jnp.round(values / scale) * scale
    scale = jnp.exp2(jnp.ceil(jnp.log2(most[:, :, None] / largest)))
    return (values / scale).astype(jnp.float8_e4m3fn).astype(jnp.float32) * scale


@pytest.mark.parametrize("format_name", FORMATS)
def test_logits_are_those_of_keys_and_values_rounded_by_page_and_head(format_name, monkeypatch):
    plain, quantized = logits(jnp.float32), logits(FORMATS[format_name][0])
    write = cache_write.write

    def write_rounded(cache, k, v, step):
        page = cache.slots // PAGE_SIZE
        return write(cache, rounded(k, page, format_name), rounded(v, page, format_name), step)

    monkeypatch.setattr(cache_write, "write", write_rounded)
    jax.clear_caches()  # layers are traced once
    by_hand = logits(jnp.float32)
    jax.clear_caches()
    assert np.isfinite(quantized).all()
    close = np.abs(quantized - by_hand).mean()
    assert close < 0.05 * np.abs(quantized - plain).mean()
