"""Products with quantized weights against numpy's float64, and the kernel against the twin."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import quantized_matmul as op
from pallas_kernels.quantized import pack_int4
from pallas_kernels.registry import Target, UnsupportedError, tracing_for

SHAPES = [(1, 96, 64), (3, 40, 256), (16, 33, 128), (70, 70, 384)]  # rows, outputs, inputs


def int8_case(T, out, num_inputs, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((T, num_inputs)), dtype)
    weight = rng.integers(-127, 128, (out, num_inputs)).astype(np.int8)
    scales = rng.uniform(0.001, 0.01, out).astype(np.float32)
    exact = np.asarray(x, np.float64) @ (weight * scales[:, None].astype(np.float64)).T
    return (x, jnp.asarray(weight), jnp.asarray(scales)[:, None], None), exact


def int4_case(T, out, num_inputs, group, *, has_zeros, dtype="float32", seed=0):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((T, num_inputs)), dtype)
    nibbles = rng.integers(0, 16, (out, num_inputs))
    scales = rng.uniform(0.01, 0.1, (out, num_inputs // group)).astype(np.float32)
    zeros = rng.integers(0, 17, scales.shape) if has_zeros else np.full(scales.shape, 8)
    at = np.arange(num_inputs) // group
    exact = np.asarray(x, np.float64) @ ((nibbles - zeros[:, at]) * scales[:, at]).T
    packed = pack_int4(jnp.asarray(nibbles), group)
    assert packed.shape == (out, num_inputs // 2)
    given_zeros = jnp.asarray(zeros, jnp.uint8) if has_zeros else None
    return (x, packed, jnp.asarray(scales), given_zeros), exact


@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("has_zeros", [False, True])
def test_the_layouts_mean_what_they_say(name, has_zeros):
    arguments, exact = int8_case(3, 40, 96)
    got = op.quantized_matmul(*arguments, implementation=name)
    np.testing.assert_allclose(got, exact, atol=1e-5, rtol=1e-5)
    arguments, exact = int4_case(3, 40, 128, 32, has_zeros=has_zeros)
    got = op.quantized_matmul(*arguments, implementation=name)
    np.testing.assert_allclose(got, exact, atol=1e-4, rtol=1e-5)


def test_a_packed_group_has_its_first_half_in_the_low_nibbles():
    packed = pack_int4(jnp.arange(16)[None, :], 8)
    assert packed[0].tolist() == [0x40, 0x51, 0x62, 0x73, 0xC8, 0xD9, 0xEA, 0xFB]


@pytest.mark.parametrize("T", [1, 2, 9])
def test_dynamic_products_are_off_by_the_rounding_of_x_only(T):
    arguments, exact = int8_case(T, 200, 512)
    assert op.OP.choose().name == "dynamic"
    got = np.asarray(jax.jit(op.quantized_matmul)(*arguments))
    error = np.sqrt(np.mean((got - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.012  # half a step of 1/127 of the largest, evenly spread


def test_a_row_of_zeros_is_zero():
    arguments, _ = int8_case(2, 40, 64)
    got = op.quantized_matmul(jnp.zeros((2, 64)), *arguments[1:])
    assert not np.asarray(got).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_int8_kernel(shape):
    arguments, exact = int8_case(*shape, dtype="bfloat16")
    got = op.pallas(*arguments, interpret=True)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("group", "has_zeros"), [(32, True), (64, False), (128, True)])
def test_the_int4_kernel(group, has_zeros):
    arguments, exact = int4_case(5, 70, 384, group, has_zeros=has_zeros, dtype="bfloat16")
    got = op.pallas(*arguments, interpret=True)
    np.testing.assert_allclose(got, exact, atol=2e-3, rtol=1e-3)


def grouped_case(dtype, T, out, num_inputs, group, *, has_zeros=False, x_dtype="bfloat16"):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((T, num_inputs)), x_dtype)
    numbers = rng.integers(-128, 128, (out, num_inputs))
    if dtype == "float8_e4m3fn":
        numbers = rng.standard_normal((out, num_inputs)).astype(jnp.float8_e4m3fn)
    scales = rng.uniform(0.001, 0.01, (out, num_inputs // group)).astype(np.float32)
    zeros = rng.integers(-128, 129, scales.shape) if has_zeros else np.zeros(scales.shape, int)
    at = np.arange(num_inputs) // group
    exact = (
        np.asarray(x, np.float64) @ ((numbers.astype(np.float64) - zeros[:, at]) * scales[:, at]).T
    )
    given_zeros = jnp.asarray(zeros, jnp.int16) if has_zeros else None
    return (x, jnp.asarray(numbers, dtype), jnp.asarray(scales), given_zeros), exact


@pytest.mark.parametrize("implementation", ["kernel", "xla", "reference"])
@pytest.mark.parametrize(
    ("dtype", "group", "has_zeros"),
    [("int8", 32, False), ("int8", 128, True), ("float8_e4m3fn", 128, False),
     ("float8_e4m3fn", 384, False)],
)  # fmt: skip
def test_groups_and_fp8(implementation, dtype, group, has_zeros):
    arguments, exact = grouped_case(dtype, 5, 70, 384, group, has_zeros=has_zeros)
    if implementation == "kernel":
        got = op.pallas(*arguments, interpret=True)
    else:
        got = op.quantized_matmul(*arguments, implementation=implementation)
    assert got.dtype == jnp.float32
    # The other twins round scaled weights to bfloat16.
    size = np.sqrt(np.mean(exact**2))
    tolerance = 1e-2 if implementation == "xla" and group < 384 else 1e-4
    np.testing.assert_allclose(got, exact, atol=tolerance * size, rtol=1e-2)


def test_fp8_is_refused_where_it_would_end_the_process():
    arguments, _ = grouped_case("float8_e4m3fn", 2, 8, 128, 128)
    with tracing_for(Target("gpu", 80)):
        with pytest.raises(UnsupportedError, match=r"float8_e4m3fn at .* 80 .*89 and later"):
            op.OP.choose("pallas", *arguments)
        assert op.OP.choose(None, *arguments).name == "xla"
    with tracing_for(Target("gpu", 89)):
        assert op.OP.choose(None, *arguments).name == "pallas"


def test_what_the_kernel_refuses():
    with tracing_for(Target("gpu", 90)):
        arguments, _ = int8_case(1, 8, 32)
        with pytest.raises(UnsupportedError, match=r"x of float32 .*bfloat16.* xla instead"):
            op.OP.choose("pallas", *arguments)
        arguments, _ = int4_case(1, 8, 64, 16, has_zeros=False, dtype="bfloat16")
        with pytest.raises(UnsupportedError, match=r"group 16 .*32, 64 and 128"):
            op.OP.choose("pallas", *arguments)
        arguments, _ = int8_case(1, 8, 32, "bfloat16")
        assert op.OP.choose(None, *arguments).name == "pallas"
