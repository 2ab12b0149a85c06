"""Every implementation against numpy, one group at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import grouped_matmul as op
from pallas_kernels.registry import Target, UnsupportedError, tracing_for

SIZES = [
    [3, 0, 1, 6],  # T // BLOCK_T is 0: one tile for each expert
    [0, 0, 0, 17],
    [40, 1, 0, 23, 64, 16],
    [0, 0],
]


def case(sizes, *, num_unused=3, out=70, num_inputs=96):
    """Rows of no group are NaN, as are weights of experts without rows."""
    rng = np.random.default_rng(sum(sizes))
    starts = np.cumsum([0, *sizes])
    x = rng.standard_normal((starts[-1] + num_unused, num_inputs))
    x[starts[-1] :] = np.nan
    weight = rng.standard_normal((len(sizes), out, num_inputs)) / 10
    weight[np.asarray(sizes) == 0] = np.nan
    arrays = jnp.asarray(x, jnp.bfloat16), jnp.asarray(weight, jnp.bfloat16)
    x, weight = (np.asarray(a, np.float64) for a in arrays)
    want = [x[a:b] @ w.T for a, b, w in zip(starts, starts[1:], weight, strict=False)]
    return (*arrays, jnp.asarray(starts, jnp.int32)), np.concatenate(want)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("name", ["pallas", "reference"])
def test_groups(name, sizes):
    arguments, want = case(sizes)
    if name == "pallas":
        got = op.pallas(*arguments, interpret=True)
    else:
        got = op.grouped_matmul(*arguments, implementation=name)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got[: len(want)], want, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_xla(sizes):
    """XLA multiplies what it does not need with 0: it may have no NaN."""
    (x, weight, starts), want = case(sizes)
    arguments = jnp.nan_to_num(x), jnp.nan_to_num(weight), starts
    got = op.grouped_matmul(*arguments)
    np.testing.assert_allclose(got[: len(want)], want, atol=1e-4, rtol=1e-4)


def test_what_the_kernel_takes():
    x, weight, starts = case([3, 4])[0]
    with tracing_for(Target("gpu", 90)):
        assert op.OP.choose(None, x, weight, starts).name == "pallas"
        with pytest.raises(UnsupportedError, match=r"grouped_matmul.*x of float32.* use .* xla"):
            op.OP.choose("pallas", x.astype(jnp.float32), weight, starts)
        traced = jax.jit(op.grouped_matmul).trace(x, weight, starts)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "grouped_matmul" in text
