"""Products of few rows against numpy's float64, and the kernel against the twin."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels import row_matmul as op
from pallas_kernels.quantized import Quantized, pack_int4
from pallas_kernels.registry import Target, UnsupportedError, tracing_for, using
from pallas_kernels.sharded import MeshAxes, sharded_quantized_matmul, sharded_row_matmul

BF16 = jnp.dtype(jnp.bfloat16)
FLOAT32 = jnp.dtype(jnp.float32)
TOLERANCE = {BF16: 2e-2, FLOAT32: 1e-5}
# rows, inputs, outputs of each weight: whole tiles, parts of tiles, the widths of SmolLM2 and Qwen
SHAPES = [(1, 64, (48,)), (2, 576, (96, 32, 32)), (5, 208, (33, 70)), (64, 128, (128, 16))]


def case(T, num_inputs, outputs, *, dtype=BF16, has_bias=False, normed=False, residual=False):
    rng = np.random.default_rng(T + num_inputs)

    def array(*shape, scale=1.0):
        return jnp.asarray(scale * rng.standard_normal(shape), dtype)

    return op.Operands(
        x=array(T, num_inputs, scale=3),
        weights=tuple(array(n, num_inputs, scale=num_inputs**-0.5) for n in outputs),
        biases=tuple(array(n) if has_bias else None for n in outputs),
        norm=1 + array(num_inputs, scale=0.2) if normed else None,
        residual=array(T, outputs[0]) if residual else None,
    )


def exact(operands, around):
    """In float64, of what row_matmul's docstring says."""
    x, norm, residual = (
        None if a is None else np.asarray(a, np.float64)
        for a in (operands.x, operands.norm, operands.residual)
    )
    if norm is not None:
        x = x / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + around.eps) * norm
    ys = [
        x @ meant_by(w).T + (0 if b is None else np.asarray(b, np.float64))
        for w, b in zip(operands.weights, operands.biases, strict=True)
    ]
    if around.gated:
        assert around.gated == "silu"
        ys = [ys[0] / (1 + np.exp(-ys[0])) * ys[1]]
    return [y if residual is None else y + residual for y in ys]


def meant_by(weight):
    """A weight in float64, number by number as pallas_kernels.quantized draws it."""
    if not isinstance(weight, Quantized):
        return np.asarray(weight, np.float64)
    numbers, scales = np.asarray(weight.numbers), np.asarray(weight.scales, np.float64)
    is_int4 = numbers.dtype == np.uint8
    size = numbers.shape[1] * (2 if is_int4 else 1)
    group = size // scales.shape[1]
    values = np.empty((numbers.shape[0], size))
    for i in range(size):
        g, place = divmod(i, group)
        if is_int4:
            byte = numbers[:, g * group // 2 + place % (group // 2)]
            number = (byte >> 4 if place >= group // 2 else byte & 15).astype(np.float64)
        else:
            number = numbers[:, i].astype(np.float64)
        zero = 8 if is_int4 else 0
        if weight.zeros is not None:
            zero = np.asarray(weight.zeros)[:, g].astype(np.float64)
        values[:, i] = (number - zero) * scales[:, g]
    return values


QUANTIZED = [
    ("int8", None, False),
    ("int8", 32, True),
    ("float8_e4m3fn", None, False),
    ("float8_e4m3fn", 128, False),
    ("int4", 64, False),
    ("int4", 32, True),
]  # format, group, zero points


def quantized(out, num_inputs, form, group, has_zeros, seed=0):
    rng = np.random.default_rng(seed + out)
    scales = rng.uniform(0.5, 1.5, (out, num_inputs // (group or num_inputs)))
    zeros = None
    if form == "int4":
        numbers = pack_int4(jnp.asarray(rng.integers(0, 16, (out, num_inputs))), group)
        scales, zero_dtype, zero_range = scales * num_inputs**-0.5 / 5, jnp.uint8, (0, 16)
    elif form == "int8":
        numbers = jnp.asarray(rng.integers(-127, 128, (out, num_inputs)), jnp.int8)
        scales, zero_dtype, zero_range = scales * num_inputs**-0.5 / 70, jnp.int16, (-128, 129)
    else:
        numbers = jnp.asarray(rng.standard_normal((out, num_inputs)), form)
        scales, zero_dtype, zero_range = scales * num_inputs**-0.5, jnp.uint8, (0, 1)
    if has_zeros:
        zeros = jnp.asarray(rng.integers(*zero_range, scales.shape), zero_dtype)
    return Quantized(numbers, jnp.asarray(scales, jnp.float32), zeros)


def quantized_case(T, num_inputs, outputs, kind, **options):
    plain = case(T, num_inputs, outputs, **options)
    return plain._replace(weights=tuple(quantized(n, num_inputs, *kind) for n in outputs))


@pytest.mark.parametrize("kind", QUANTIZED, ids=str)
def test_quantized_weights_beside_a_norm_and_biases(kind):
    """q, k and v in one launch; parts of tiles."""
    operands = quantized_case(5, 256, (96, 33, 33), kind, normed=True, has_bias=True)
    around = op.Around(None, 1e-5, BF16)
    for implementation in (partial(op.pallas, interpret=True), op.reference, op.xla):
        assert_close(implementation(operands, around), exact(operands, around), BF16)


@pytest.mark.parametrize("T", [1, 64, 70])
@pytest.mark.parametrize("kind", QUANTIZED[::2], ids=str)
def test_quantized_gate_and_up_in_one_kernel(T, kind):
    around = op.Around("silu", 1e-6, BF16)
    operands = quantized_case(T, 384, (72, 72), kind, normed=True)
    assert_close(op.pallas(operands, around, interpret=True), exact(operands, around), BF16)


@pytest.mark.parametrize("kind", QUANTIZED, ids=str)
@pytest.mark.parametrize("split", ["out", "in"])
def test_four_devices_multiply_their_parts_of_quantized_weights(split, kind):
    mesh = MeshAxes(Mesh(np.asarray(jax.devices()[:4]), ("tp",)), ("tp",), ("tp",))
    form, group, has_zeros = kind
    sizes = {"out": (96, 256), "in": (40, 1024)}[split]
    weight = quantized(*sizes, form, group and min(group, 128), has_zeros)
    x = case(3, sizes[1], (8,)).x.astype(BF16)
    spec = P("tp", None) if split == "out" else P(None, "tp")

    def local(x, numbers, scales, zeros):
        assert numbers.shape[0] == (24 if split == "out" else 40)
        operands = op.Operands(x, (Quantized(numbers, scales, zeros),), (None,), None, None)
        return op.pallas(operands, op.Around(None, 0.0, FLOAT32), interpret=True)[0]

    got = jax.jit(partial(sharded_quantized_matmul, (mesh, spec), matmul=local))(x, weight)
    want = np.asarray(x, np.float64) @ meant_by(weight).T
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=2e-2, rtol=2e-2)


def assert_close(got, want, dtype):
    for one, other in zip(got, want, strict=True):
        assert one.shape == other.shape
        tolerance = TOLERANCE[jnp.dtype(dtype)]
        np.testing.assert_allclose(
            np.asarray(one, np.float64), other, atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize(
    ("shape", "normed", "dtype"),
    [
        (SHAPES[0], False, BF16),
        (SHAPES[1], True, BF16),
        (SHAPES[2], True, FLOAT32),
        (SHAPES[2], False, FLOAT32),
        (SHAPES[3], True, BF16),
        (SHAPES[3], False, FLOAT32),
    ],
    ids=str,
)
def test_the_kernel_is_the_product(shape, normed, dtype):
    operands = case(*shape, dtype=dtype, normed=normed, has_bias=shape[0] == 5)
    around = op.Around(None, 1e-5, FLOAT32 if dtype == FLOAT32 else BF16)
    got = op.pallas(operands, around, interpret=True)
    assert all(y.dtype == around.out_dtype for y in got)
    assert_close(got, exact(operands, around), dtype)
    assert_close(op.reference(operands, around), exact(operands, around), dtype)


@pytest.mark.parametrize("T", [1, 64])
def test_gate_and_up_in_one_kernel(T):
    around = op.Around("silu", 1e-6, BF16)
    operands = case(T, 320, (72, 72), normed=True, has_bias=True)
    (want,) = exact(operands, around)
    for implementation in (partial(op.pallas, interpret=True), op.reference, op.xla):
        assert_close(implementation(operands, around), [want], BF16)


@pytest.mark.parametrize("name", op.ACTIVATIONS)
def test_every_activation_is_the_twins(name):
    operands = case(3, 64, (40, 40), dtype=FLOAT32)
    around = op.Around(name, 0.0, FLOAT32)
    want = [np.asarray(y, np.float64) for y in op.reference(operands, around)]
    assert_close(op.pallas(operands, around, interpret=True), want, FLOAT32)


def test_the_residual_is_added():
    operands = case(17, 192, (160,), residual=True, has_bias=True)
    around = op.Around(None, 0.0, BF16)
    assert_close(op.pallas(operands, around, interpret=True), exact(operands, around), BF16)


def test_rows_beyond_a_block_of_rows():
    """More rows than a program takes: a second row of programs."""
    operands = case(40, 64, (32,), dtype=FLOAT32)
    around = op.Around(None, 0.0, FLOAT32)
    tiling = op.Tiling(block_t=16, block_n=16, block_k=64, num_stages=2)
    got = op.pallas(operands, around, tiling=tiling, interpret=True)
    assert_close(got, exact(operands, around), FLOAT32)


def test_a_norm_of_large_numbers_does_not_lose_them():
    operands = case(2, 256, (32,), normed=True)
    operands = operands._replace(x=(operands.x.astype(jnp.float32) * 3e5).astype(BF16))
    around = op.Around(None, 1e-5, BF16)
    assert_close(op.pallas(operands, around, interpret=True), exact(operands, around), BF16)


def arguments(operands):
    return operands.x, operands.weights, operands.biases


@pytest.mark.parametrize("split", ["out", "in"])
@pytest.mark.parametrize("interpreted", [False, True])
@pytest.mark.parametrize("dtype", [FLOAT32, BF16], ids=str)
def test_four_devices_compute_what_one_does(split, interpreted, dtype):
    mesh = MeshAxes(Mesh(np.asarray(jax.devices()[:4]), ("tp",)), ("tp",), ("tp",))

    def matmul(x, weights, biases, norm=None, eps=0.0, gated=None, out_dtype=None):
        operands = op.Operands(x, weights, biases, norm, None)
        assert x.shape[1] == (64 if split == "out" else 16)
        return op.pallas(operands, op.Around(gated, eps, out_dtype or x.dtype), interpret=True)

    operands = case(
        3, 64, (96,), dtype=dtype, has_bias=True, normed=split == "out", residual=split == "in"
    )
    eps = 1e-5 if split == "out" else 0.0
    spec = P("tp", None) if split == "out" else P(None, "tp")
    call = partial(
        sharded_row_matmul, mesh, [spec], eps=eps, matmul=matmul if interpreted else None
    )
    got = jax.jit(call)(*arguments(operands), norm=operands.norm, residual=operands.residual)
    assert got[0].dtype == dtype
    assert_close(got, exact(operands, op.Around(None, eps, dtype)), dtype)


def test_what_the_mesh_does_not_divide_is_left_to_xla():
    mesh = MeshAxes(Mesh(np.asarray(jax.devices()[:4]), ("tp",)), ("tp",), ("tp",))
    operands = case(3, 64, (98,), dtype=FLOAT32)
    call = partial(sharded_row_matmul, mesh, [P("tp", None)])
    with tracing_for(Target("gpu", 90)):
        text = jax.jit(call).trace(*arguments(operands)).lower(lowering_platforms=("cpu",))
    assert "dot_general" in text.as_text() and "custom_call" not in text.as_text()


def test_what_the_kernel_refuses():
    around = op.Around(None, 0.0, BF16)
    with tracing_for(Target("gpu", 90)):
        with pytest.raises(UnsupportedError, match=r"weights of float32 .*bfloat16.* xla instead"):
            op.OP.choose("pallas", case(1, 64, (16,), dtype=FLOAT32), around)
        with pytest.raises(UnsupportedError, match=r"65 rows .*up to 64 rows"):
            op.OP.choose("pallas", case(65, 64, (16,)), around)
        with pytest.raises(UnsupportedError, match=r"20 inputs .*multiples of 16"):
            op.OP.choose("pallas", case(1, 20, (16,)), around)
        half = case(1, 64, (16,), dtype=jnp.float16, normed=True)
        assert op.OP.choose(None, half, around).name == "pallas"
        assert op.OP.choose(None, case(64, 64, (16,)), around).name == "pallas"
    assert op.OP.choose(None, case(64, 64, (16,)), around).name == "xla"


def tiling_at(capability, operands, around, **options):
    with tracing_for(Target("gpu", capability)):
        return str(op.Tiling.of(operands, around, **options))


def shapes(T, num_inputs, outputs, *, normed=False, is_int4=False):
    def array(*shape, dtype=BF16):
        return jax.ShapeDtypeStruct(shape, dtype)

    def weight(n):
        if not is_int4:
            return array(n, num_inputs)
        numbers = array(n, num_inputs // 2, dtype=jnp.dtype(jnp.uint8))
        return Quantized(numbers, array(n, num_inputs // 128, dtype=FLOAT32), None)

    weights = tuple(weight(n) for n in outputs)
    norm = array(num_inputs) if normed else None
    return op.Operands(array(T, num_inputs), weights, (None,) * len(weights), norm, None)


def llama(T, what, **options):
    """Shapes of Llama-3.1-8B's gate and up, or down."""
    if what == "down":
        return shapes(T, 14336, (4096,), **options), op.Around(None, 0.0, BF16)
    operands = shapes(T, 4096, (14336, 14336), normed=True, **options)
    return operands, op.Around("silu", 0.0, BF16)


def test_programs_are_wide_where_all_of_x_would_be_read_most_often():
    gate_up, down = llama(64, "gate_up"), llama(64, "down")
    assert [tiling_at(gpu, *gate_up) for gpu in (80, 89, 90)] == [
        "n64/k128/s4/w8",
        "n64/k128/s3/w8",  # 99 KB of shared memory
        "n64/k128/s4/w8",
    ]
    assert tiling_at(90, *down) == "n64/k128/s4/w4"
    assert tiling_at(90, *llama(33, "down")) == "n64/k128/s4/w4"
    assert tiling_at(90, *llama(32, "down")) == "n32/k256/s3/w4"
    assert tiling_at(90, *llama(64, "down"), widest=32) == "n32/k128/s4/w4"
    assert tiling_at(90, *llama(64, "gate_up"), widest=32) == "n32/k128/s3/w4"
    assert tiling_at(90, shapes(64, 896, (896,)), down[1]) == "n16/k128/s4/w4"
    int4 = llama(64, "gate_up", is_int4=True)
    assert [tiling_at(gpu, *int4) for gpu in (80, 90)] == ["n32/k128/s3/w4", "n64/k128/s4/w8"]


def test_both_old_tilings_and_the_ones_in_use_are_listed_to_be_measured():
    listed = [str(tiling) for tiling in op.TILINGS_AT_64_ROWS]
    for what in ("gate_up", "down"):
        for widest in (32, op.WIDE):
            assert tiling_at(90, *llama(64, what), widest=widest) in listed


@pytest.mark.parametrize("tiling", op.TILINGS_AT_64_ROWS, ids=str)
def test_every_listed_tiling_computes_the_product(tiling):
    around = op.Around("silu", 1e-6, BF16)
    operands = case(40, 320, (72, 72), normed=True)
    (want,) = exact(operands, around)
    got = op.pallas(operands, around, tiling=tiling, interpret=True)
    assert_close(got, [want], BF16)


def test_a_caller_names_the_tiling_or_xla():
    operands = shapes(64, 128, (64,))
    call = partial(op.row_matmul, eps=0.0)

    def lowered(**options):
        with tracing_for(Target("gpu", 90)):
            run = jax.jit(lambda o: call(o.x, o.weights, **options))
            return run.trace(operands).jaxpr

    tiling = op.Tiling(64, 128, 64, 5, 8)
    assert "num_stages=5" in str(lowered(tiling=tiling))
    assert "pallas_call" in str(lowered())
    with using({"row_matmul": "xla"}):
        assert "pallas_call" not in str(lowered())
    with using({"row_matmul": op.NARROW}):
        assert "pallas_call" in str(lowered())
    with pytest.raises(ValueError, match=r"a tiling is of implementation pallas; xla has none"):
        lowered(tiling=tiling, implementation="xla")
