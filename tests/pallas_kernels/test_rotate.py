"""Norm and rotation of heads against numpy's float64, and the kernel against the twin."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import rotate as op
from pallas_kernels.registry import Target, UnsupportedError, tracing_for
from pallas_kernels.sharded import MeshAxes, sharded_rotate

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}


def case(T, heads, head_dim, half, *, dtype="float32", normed=False):
    rng = np.random.default_rng(head_dim)
    angles = rng.uniform(0, 6, (T, half))
    q, k = (jnp.asarray(3 * rng.standard_normal((T, n, head_dim)), dtype) for n in heads)
    norms = (jnp.asarray(1 + 0.2 * rng.standard_normal(head_dim), dtype) for _ in range(2))
    cos, sin = jnp.asarray(np.cos(angles), jnp.float32), jnp.asarray(np.sin(angles), jnp.float32)
    return op.Operands(q, k, cos, sin, *(norms if normed else (None, None)))


def exact(operands, eps):
    """In float64, as complex numbers: another way to turn a pair."""
    turn = np.asarray(operands.cos, np.float64) + 1j * np.asarray(operands.sin, np.float64)
    half = turn.shape[1]
    results = []
    for x, norm in ((operands.q, operands.q_norm), (operands.k, operands.k_norm)):
        x = np.array(x, np.float64)
        if norm is not None:
            x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + eps)
            x = x * np.asarray(norm, np.float64)
        pairs = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn[:, None, :]
        x[..., :half], x[..., half : 2 * half] = pairs.real, pairs.imag
        results.append(x)
    return results


def assert_close(got, operands, eps):
    for one, given, want in zip(got, (operands.q, operands.k), exact(operands, eps), strict=True):
        assert (one.shape, one.dtype) == (given.shape, given.dtype)
        tolerance = TOLERANCE[one.dtype.name]
        np.testing.assert_allclose(
            np.asarray(one, np.float64), want, atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize(
    ("arguments", "normed", "dtype"),
    [
        ((1, (9, 3), 64, 32), False, "bfloat16"),  # SmolLM2
        ((5, (16, 2), 128, 64), True, "bfloat16"),  # Qwen3-32B on 4 devices
        ((3, (10, 2), 80, 16), True, "float32"),  # part of a head is turned, padded to 64
        ((2, (4, 4), 96, 48), False, "float32"),  # halves are padded
    ],
    ids=str,
)
def test_the_kernel_is_norm_and_rotation(arguments, normed, dtype):
    operands = case(*arguments, dtype=dtype, normed=normed)
    assert_close(op.pallas(operands, eps=1e-6, interpret=True), operands, 1e-6)
    assert_close(op.reference(operands, eps=1e-6), operands, 1e-6)
    assert_close(op.xla(operands, eps=1e-6), operands, 1e-6)


@pytest.mark.parametrize("interpreted", [False, True])
def test_heads_over_four_devices(interpreted):
    mesh = MeshAxes(Mesh(np.asarray(jax.devices()[:4]), ("tp",)), ("tp",), ("tp",))
    operands = case(3, (8, 4), 64, 32, normed=True)

    def rotation(q, k, cos, sin, *, q_norm, k_norm, eps):
        assert (q.shape[1], k.shape[1]) == (2, 1)
        local = op.Operands(q, k, cos, sin, q_norm, k_norm)
        return op.pallas(local, eps=eps, interpret=True)

    options = {"rotation": rotation} if interpreted else {}
    call = partial(sharded_rotate, mesh, eps=1e-6, **options)
    norms = operands.q_norm, operands.k_norm
    got = jax.jit(call)(operands.q, operands.k, (operands.cos, operands.sin), norms)
    assert_close(got, operands, 1e-6)


def test_what_the_kernel_refuses():
    with tracing_for(Target("gpu", 90)):
        with pytest.raises(UnsupportedError, match=r"head_dim 640 .*up to 512.*xla instead"):
            op.OP.choose("pallas", case(1, (1, 1), 640, 320), eps=0.0)
        assert op.OP.choose(None, case(1, (1, 1), 64, 32), eps=0.0).name == "pallas"
    assert op.OP.choose(None, case(1, (1, 1), 64, 32), eps=0.0).name == "xla"
