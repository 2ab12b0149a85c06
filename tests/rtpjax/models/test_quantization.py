"""What rounding costs: rotated int8 (with scipy's Hadamard matrix), and groups of int4."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from rtpjax.models.quantization import Quantization, kept_on
from rtpjax.models.weight_formats import PLAIN, Int4, Int8, rotated

ROTATED = Int8(is_rotated=True)


@pytest.mark.parametrize(("num_inputs", "block"), [(576, 64), (1024, 64), (96, 32), (9, 1)])
def test_blocks_of_inputs_are_rotated(num_inputs: int, block: int):
    values = np.random.default_rng(0).standard_normal((3, num_inputs)).astype(np.float32)
    matrix = np.asarray(
        scipy.linalg.block_diag(
            *[scipy.linalg.hadamard(block) / np.sqrt(block)] * (num_inputs // block)
        )
    )
    np.testing.assert_allclose(rotated(values), values @ matrix, atol=1e-5)
    np.testing.assert_allclose(rotated(jnp.asarray(values)), values @ matrix, atol=1e-5)
    np.testing.assert_allclose(rotated(rotated(values)), values, atol=1e-5)


def outlier_case() -> tuple[np.ndarray, np.ndarray]:
    """x `[3, 192]`, each row with one number 60 times as large as the rest, and a matrix."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 192)).astype(np.float32)
    x[[0, 1, 2], [5, 70, 191]] = 60.0
    return x, rng.standard_normal((40, 192)).astype(np.float32)


def error_of(format: Int8) -> float:
    """The product's error beside what all but the large numbers contribute."""
    x, matrix = outlier_case()
    arrays = {name: jnp.asarray(array) for name, array in format.encode(matrix).items()}
    assert arrays["weight"].dtype == jnp.int8
    decoded = format.decode({name: np.asarray(array) for name, array in arrays.items()})
    got = np.asarray(jax.jit(format.product)(jnp.asarray(x), arrays))
    rest = np.where(x == 60.0, 0.0, x) @ matrix.T
    return float(np.sqrt(np.mean((got - x @ decoded.T) ** 2) / np.mean(rest**2)))


def test_rotation_keeps_what_is_small_beside_a_large_number():
    assert error_of(Int8()) > 0.08
    assert 1e-3 < error_of(ROTATED) < 0.04


def test_rows_and_the_matrix_are_rotated_back():
    _, matrix = outlier_case()
    arrays = ROTATED.encode(matrix)
    half_step = 0.5 * arrays["weight_scale"].max()
    # Each is the sum of 64 rounded numbers over 8.
    np.testing.assert_allclose(ROTATED.decode(arrays), matrix, atol=8 * half_step)
    assert np.abs(ROTATED.decode(arrays) - matrix).mean() < half_step
    on_device = {name: jnp.asarray(array) for name, array in arrays.items()}
    rows = ROTATED.rows(jnp.array([7, 0]), on_device)
    np.testing.assert_allclose(rows, ROTATED.decode(arrays)[[7, 0]], atol=1e-5)


def test_only_the_cpu_rotates_and_only_a_scale_per_output():
    wanted = Quantization(Int8(), Int8(128), Int4())
    assert kept_on("gpu", wanted) == wanted
    assert kept_on("cpu", wanted) == Quantization(ROTATED, PLAIN, PLAIN)


@pytest.mark.parametrize("group", [32, 128])
def test_int4_errs_less_than_by_the_largest_number(group: int):
    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    values[0] = 0.0
    format = Int4(group)
    error = np.square(format.decode(format.encode(values)) - values).mean()
    grouped = values[1:].reshape(63, -1, group)
    steps = np.abs(grouped).max(axis=-1, keepdims=True) / 7
    plain = np.square(np.clip(np.rint(grouped / steps), -8, 7) * steps - grouped).mean()
    assert 0.3 * plain < error < 0.75 * plain


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_int4_has_sixteen_levels_whatever_the_largest_numbers_sign(sign: float):
    values = sign * np.arange(-8, 8, dtype=np.float32).repeat(2)[None, :]
    format = Int4(32)
    np.testing.assert_allclose(format.decode(format.encode(values)), values, atol=1e-6)
