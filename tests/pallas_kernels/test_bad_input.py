"""What kernels do not take: said before anything is lowered, with what would do.

Arguments that fit no implementation are a ValueError; those that one kernel cannot do are an
UnsupportedError that names the implementation to use instead, which the registry does.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import grouped_matmul, paged_attention, quantized_matmul
from pallas_kernels.registry import Target, UnsupportedError, tracing_for

A100, L4, H100, B200 = (Target("gpu", n) for n in (80, 89, 90, 100))
TURING = Target("gpu", 75)


def array(*shape, dtype="bfloat16"):
    return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def attention(
    *, H=128, N=8, K=2, page_size=64, cache="bfloat16", q="bfloat16", values=None, **changed
):
    """Shapes of a call with 4 rows, some of them changed."""
    pages = array(32, page_size, K, H, dtype=cache)
    arrays = {
        "q": array(4, N, H, dtype=q),
        "k_pages": pages,
        "v_pages": values or pages,
        "page_table": array(4, 8, dtype="int32"),
        "query_start": array(5, dtype="int32"),
        "context_lens": array(4, dtype="int32"),
    }
    if cache in ("int8", "float8_e4m3fn"):
        scales = array(32, K, dtype="float32")
        arrays |= {"k_scales": scales, "v_scales": scales}
    return {**arrays, **changed}


def choose(op, target, arrays, name=None, **options):
    with tracing_for(target):
        return op.choose(name, *arrays.values(), **options)


def choose_attention(target, arrays, name=None, **options):
    arrays = dict(arrays)
    named = {n: arrays.pop(n) for n in ("k_scales", "v_scales", "sinks") if n in arrays}
    return choose(paged_attention.OP, target, arrays, name, **named, scale=1.0, **options)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"page_table": array(8, dtype="int32")}, r"page_table is int32\[8\]; .*B, max_pages"),
        ({"page_table": array(4, 8, dtype="int16")}, r"page_table is int16\[4, 8\]; .*int32"),
        ({"page_table": array(4, 8, dtype="float32")}, r"page_table is float32\[4, 8\]"),
        ({"query_start": array(4, dtype="int32")}, r"query_start is int32\[4\]; .*int32 \[5\]"),
        ({"context_lens": array(5, dtype="int32")}, r"context_lens is int32\[5\]; .*int32 \[4\]"),
        ({"values": array(32, 64, 2, 64)}, r"v_pages is bfloat16\[32, 64, 2, 64\]; .*2, 128\]"),
        ({"values": array(31, 64, 2, 128)}, r"v_pages is bfloat16\[31, "),
        ({"q": array(4, 8, 64)}, r"q is bfloat16\[4, 8, 64\]; expected \[4, 8, 128\]"),
        ({"q": array(4, 1024)}, r"q is bfloat16\[4, 1024\]; expected \[T, N, H\]"),
        ({"k_pages": array(32, 64, 256)}, r"k_pages is .*expected \[P, page_size, K, H\]"),
        ({"N": 7}, "7 query heads are no multiple of 2 kv heads"),
        ({"sinks": array(4, dtype="float32")}, r"sinks is float32\[4\]; expected \[8\]"),
        ({"cache": "int8", "k_scales": None}, "a cache of int8 needs k_scales and v_scales"),
        ({"k_scales": array(32, 2, dtype="float32")}, "bfloat16 has no k_scales"),
        (
            {"cache": "int8", "v_scales": array(32, 64, dtype="float32")},
            r"v_scales is float32\[32, 64\]; expected \[32, 2\]",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [None, "pallas", "reference"])
def test_arguments_that_do_not_belong_together(changed, message, name):
    q = changed.pop("q", None)
    arrays = attention(**changed)
    changed.update({} if q is None else {"q": q})
    arrays.update({} if q is None else {"q": q})
    with pytest.raises(ValueError, match=f"^paged_attention: .*{message}") as error:
        choose_attention(H100, arrays, name)
    assert not isinstance(error.value, UnsupportedError)


def test_a_decode_of_more_tokens_than_rows():
    arrays = {**attention(), "q": array(9, 8, 128)}
    with pytest.raises(ValueError, match="one token a row; q has 9 tokens and page_table 4 rows"):
        choose_attention(H100, arrays, decode=True)


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        (TURING, {}, "compute capability 75 is not supported; supported: 80 and later"),
        (H100, {"H": 12}, "head_dim 12 .* multiples of 8 from 16 to 256"),
        (H100, {"H": 512}, "head_dim 512 .* multiples of 8 from 16 to 256"),
        (H100, {"N": 130, "K": 2}, "130 heads on 2 kv heads .* up to 64"),
        (H100, {"cache": "float16", "values": array(32, 64, 2, 128)}, "float16 keys and bfloat16"),
        (A100, {"cache": "float8_e4m3fn"}, "float8_e4m3fn cache on compute capability 80 .*89 on"),
        (H100, {"q": "int8"}, "q of int8 .* bfloat16, float16 and float32"),
        (H100, {"cache": "int16"}, "a cache of int16 .* int8, float8_e4m3fn"),
    ],
    ids=str,
)
@pytest.mark.parametrize("decode", [True, False])
def test_attention_that_xla_does_instead(target, shape, message, decode, caplog):
    arrays = attention(**shape)
    expected = f"^paged_attention: implementation pallas on gpu sm.*{message}.* xla instead"
    with pytest.raises(UnsupportedError, match=expected):
        choose_attention(target, arrays, "pallas", decode=decode)
    paged_attention.OP._warned.clear()
    for _ in range(2):
        assert choose_attention(target, arrays, decode=decode).name == "xla"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("shape", [{"H": 72}, {"page_size": 48}, {"N": 2}, {"N": 128}], ids=str)
def test_unusual_shapes_that_the_kernels_do(shape):
    for target in (A100, L4, H100, B200):
        assert choose_attention(target, attention(**shape)).name == "pallas"


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        (A100, {}, r"compute capability 80 .* 90 \(Hopper"),
        (B200, {}, r"compute capability 100 .* 90 \(Hopper"),
        (H100, {"H": 80}, "head_dim 80 .* 64 and 128"),
        (H100, {"H": 256}, "head_dim 256 .* 64 and 128"),
        (H100, {"page_size": 48}, "page size 48 .* powers of two from 8 on"),
        (H100, {"page_size": 4}, "page size 4 .* powers of two from 8 on"),
        (H100, {"cache": "int8"}, "q of bfloat16 and a cache of int8 .* the same in both"),
        (H100, {"cache": "float32", "q": "float32"}, "q of float32 .* bfloat16 and float16"),
    ],
    ids=str,
)
def test_what_the_hopper_kernel_leaves_to_the_other(target, shape, message):
    with pytest.raises(UnsupportedError, match=f"implementation mosaic on .*{message}.* pallas in"):
        choose_attention(target, attention(**shape), "mosaic")


def test_the_hopper_kernel_runs_only_if_it_is_named():
    assert choose_attention(H100, attention()).name == "pallas"
    assert choose_attention(H100, attention(), "mosaic").name == "mosaic"
    assert choose_attention(H100, attention(), "mosaic", decode=True).name == "mosaic"


def weights(*, x="bfloat16", weight="int8", rows=3, inputs=256, group=64):
    """Arguments of a quantized product."""
    if weight == "uint8":
        arrays = array(40, inputs // 2, dtype=weight), array(40, inputs // group, dtype="float32")
    else:
        arrays = array(40, inputs, dtype=weight), array(40, 1, dtype="float32")
    return {"x": array(rows, inputs, dtype=x), "weight": arrays[0], "scales": arrays[1]}


@pytest.mark.parametrize(
    ("target", "shape", "message"),
    [
        (TURING, {}, "compute capability 75 .* 80 and later"),
        (H100, {"x": "float32"}, "x of float32 .* bfloat16 and float16"),
        (
            H100,
            {"weight": "int16"},
            "a weight of int16 .* int8, float8_e4m3fn, and int4 packed in uint8",
        ),
        (H100, {"weight": "uint8", "group": 16}, "group 16 .* 32, 64 and 128"),
        (H100, {"inputs": 250}, "250 inputs .* multiples of 16"),
    ],
    ids=str,
)
def test_quantized_products_that_xla_does_instead(target, shape, message):
    op = quantized_matmul.OP
    with pytest.raises(UnsupportedError, match=f"^quantized_matmul: .*{message}.* xla instead"):
        choose(op, target, weights(**shape), "pallas")
    assert choose(op, target, weights(**shape)).name == "xla"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": array(40, 250, dtype="int8")}, r"weight is int8\[40, 250\]; expected"),
        (
            {"scales": array(41, dtype="float32")},
            r"scales is float32\[41\]; expected \[40, in / gr",
        ),
        (
            {"scales": array(40, 3, dtype="float32")},
            "3 groups do not divide 256 inputs .* a whole n",
        ),
        ({"zeros": array(40, 4, dtype="int16")}, r"zeros is int16\[40, 4\]; expected \[40, 1\]"),
    ],
    ids=str,
)
def test_int8_weights_that_do_not_belong_together(changed, message):
    with pytest.raises(ValueError, match=f"^quantized_matmul: .*{message}"):
        choose(quantized_matmul.OP, H100, {**weights(), **changed})


def test_int4_groups_that_do_not_divide_the_inputs():
    changed = {**weights(weight="uint8"), "scales": array(40, 3, dtype="float32")}
    with pytest.raises(ValueError, match=r"3 groups do not divide 256 inputs .* even number"):
        choose(quantized_matmul.OP, H100, changed)
    zeros = {**weights(weight="uint8"), "zeros": array(40, 5, dtype="uint8")}
    with pytest.raises(ValueError, match=r"zeros is uint8\[40, 5\]; expected uint8 \[40, 4\]"):
        choose(quantized_matmul.OP, H100, zeros)


def experts(**changed):
    arrays = {
        "x": array(24, 128),
        "weight": array(4, 96, 128),
        "starts": array(5, dtype="int32"),
    }
    return {**arrays, **changed}


@pytest.mark.parametrize(
    ("target", "changed", "message"),
    [
        (TURING, {}, "compute capability 75"),
        (H100, {"weight": array(4, 96, 128, dtype="float32")}, "weights of float32"),
        (
            H100,
            {"x": array(24, 100), "weight": array(4, 96, 100)},
            "100 inputs .* multiples of 16",
        ),
    ],
    ids=str,
)
def test_grouped_products_that_xla_does_instead(target, changed, message):
    with pytest.raises(UnsupportedError, match=f"^grouped_matmul: .*{message}.* xla instead"):
        choose(grouped_matmul.OP, target, experts(**changed), "pallas")
    assert choose(grouped_matmul.OP, target, experts(**changed)).name == "xla"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"starts": array(4, dtype="int32")}, r"starts is int32\[4\]; expected int32 \[5\]"),
        ({"starts": array(5, dtype="uint8")}, r"starts is uint8\[5\]; expected int32 \[5\]"),
        ({"x": array(24, 64)}, r"x is bfloat16\[24, 64\]; expected \[24, 128\]"),
        ({"weight": array(96, 128)}, r"weight is bfloat16\[96, 128\]; expected \[E, out, in\]"),
    ],
    ids=str,
)
def test_experts_that_do_not_belong_together(changed, message):
    with pytest.raises(ValueError, match=f"^grouped_matmul: .*{message}"):
        choose(grouped_matmul.OP, H100, experts(**changed))
