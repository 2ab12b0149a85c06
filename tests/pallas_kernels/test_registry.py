"""Which implementation runs, and what is said when it is not the first."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.paged_attention import OP
from pallas_kernels.registry import (
    Implementation,
    Op,
    Target,
    UnsupportedError,
    current_target,
    tracing_for,
    using,
)
from pallas_kernels.shapes import ATTENTION_SHAPES, AttentionShape

A100, L4, H100 = Target("gpu", 80), Target("gpu", 89), Target("gpu", 90)


def arguments(shape, num_pages=64, num_rows=4):
    q_dtype = "bfloat16" if shape.is_quantized else shape.cache_dtype
    pages = jax.ShapeDtypeStruct(
        (num_pages, 16, shape.num_kv_heads, shape.head_dim), jnp.dtype(shape.cache_dtype)
    )
    integers = [
        jax.ShapeDtypeStruct(s, jnp.int32) for s in ((num_rows, 8), (num_rows + 1,), (num_rows,))
    ]
    q = jax.ShapeDtypeStruct((num_rows, shape.num_heads, shape.head_dim), jnp.dtype(q_dtype))
    return (q, pages, pages, *integers)


def named_arrays(shape, num_pages=64):
    scales = jax.ShapeDtypeStruct((num_pages, shape.num_kv_heads), jnp.float32)
    arrays = {"k_scales": scales, "v_scales": scales} if shape.is_quantized else {}
    if shape.has_sinks:
        arrays["sinks"] = jax.ShapeDtypeStruct((shape.num_heads,), jnp.float32)
    return arrays


def chosen(target, shape, name=None, num_pages=64):
    with tracing_for(target):
        args, arrays = arguments(shape, num_pages), named_arrays(shape, num_pages)
        return OP.choose(name, *args, **arrays, scale=1.0).name


def test_the_target_is_the_machine_unless_said():
    assert current_target() == Target("cpu")
    with tracing_for(H100):
        assert current_target() == H100
    assert current_target() == Target("cpu")


@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=lambda s: s.name)
def test_every_shape_has_a_kernel_on_hopper_and_none_on_the_cpu(shape):
    assert chosen(H100, shape) == "pallas"
    assert chosen(Target("cpu"), shape) == "xla"


@pytest.mark.parametrize(
    ("target", "shape", "num_pages", "message"),
    [
        (A100, AttentionShape("", 8, 8, 128, cache_dtype="float8_e4m3fn"), 64, "float8_e4m3fn"),
        (Target("gpu", 75), AttentionShape("", 8, 8, 128), 64, "compute capability 75"),
        (H100, AttentionShape("", 8, 8, 512), 64, "head_dim 512 .*from 16 to 256"),
        (H100, AttentionShape("", 71, 1, 64), 64, "71 heads on 1 kv heads .*up to 64"),
        (H100, AttentionShape("", 8, 8, 64, cache_dtype="int16"), 64, "a cache of int16"),
        (H100, AttentionShape("", 8, 8, 128, cache_dtype="int8"), 2**18 - 1, "int8 cache of 42"),
    ],
)
def test_what_no_kernel_does(target, shape, num_pages, message, caplog):
    """Refused by name, and replaced by what the message recommends, with one warning."""
    if shape.cache_dtype == "int16":
        shape = AttentionShape("", 8, 8, 64)
        args = list(arguments(shape))
        args[1] = args[2] = jax.ShapeDtypeStruct(args[1].shape, jnp.int16)
    else:
        args = arguments(shape, num_pages)
    arrays = named_arrays(shape, num_pages)
    with tracing_for(target):
        with pytest.raises(UnsupportedError, match=f"^paged_attention: .*{message}.* xla instead"):
            OP.choose("pallas", *args, **arrays, scale=1.0)
        OP._warned.clear()
        for _ in range(2):
            assert OP.choose(None, *args, **arrays, scale=1.0).name == "xla"
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "implementation pallas" in record.getMessage()


def test_an_fp8_cache_is_fine_from_ada_on():
    shape = AttentionShape("", 8, 8, 128, cache_dtype="float8_e4m3fn")
    assert chosen(L4, shape) == "pallas"
    assert chosen(A100, shape) == "xla"


@pytest.mark.parametrize("num_pages", [2**17, 2**18 + 1])
def test_offsets_that_fit_32_bits_or_are_64_bits_wide(num_pages):
    shape = AttentionShape("", 8, 8, 128, cache_dtype="int8")
    assert chosen(H100, shape, num_pages=num_pages) == "pallas"


def test_a_name_that_is_not_for_the_platform():
    with pytest.raises(ValueError, match=r"no implementation pallas for platform cpu; have pallas"):
        OP.choose("pallas")


def test_implementations_in_order_of_registration():
    op = Op("twice")

    def refuses_two(target, x):
        if x == 2:
            raise UnsupportedError("2 is not supported; use implementation plain instead.")

    op.register("fast", "cpu", supports=refuses_two)(lambda x: ("fast", x))
    op.register("plain", "cpu")(lambda x: ("plain", x))
    assert op(1) == ("fast", 1)
    assert op(2) == ("plain", 2)
    with pytest.raises(UnsupportedError, match="twice: implementation fast on cpu: 2 is not"):
        op(2, implementation="fast")


def test_one_that_is_not_automatic_runs_only_if_it_is_named():
    op = Op("twice")
    op.register("special", "cpu", is_automatic=False)(lambda x: ("special", x))
    op.register("plain", "cpu")(lambda x: ("plain", x))
    assert op(1) == ("plain", 1)
    assert op(1, implementation="special") == ("special", 1)
    with using({"twice": "special", "another": "plain"}):
        assert op(1) == ("special", 1)
        assert op(1, implementation="plain") == ("plain", 1)
    assert op(1) == ("plain", 1)
    own = Implementation("own", lambda x: ("own", x), ("cpu",))
    with using({"twice": own}):
        assert op(1) == ("own", 1)


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("shape", ATTENTION_SHAPES, ids=lambda s: s.name)
def test_every_shape_lowers_for_nvidia(shape, decode):
    """Interpret mode lets through what Triton refuses: sizes that are no power of two."""
    args, arrays = arguments(shape), named_arrays(shape)

    def attention(args, arrays):
        return OP(
            *args, **arrays, scale=1.0, window=shape.window, soft_cap=shape.soft_cap, decode=decode
        )

    with tracing_for(H100):
        lowered = jax.jit(attention).trace(args, arrays).lower(lowering_platforms=("cuda",))
    assert f"paged_{'decode' if decode else 'prefill'}" in lowered.as_text()
