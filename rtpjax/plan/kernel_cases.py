"""Shapes that each op's implementations are compiled with: those of real models.

An op of pallas_kernels that has no shapes here fails the check.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import pallas_kernels
from pallas_kernels import quantized_write, rotate
from pallas_kernels.quantized import Quantized
from pallas_kernels.registry import Implementation, Op, Target, UnsupportedError
from pallas_kernels.row_matmul import MAX_ROWS, Around, Operands
from rtpjax.gpus import Gpu
from rtpjax.models import ModelConfig
from rtpjax.models.weight_formats import Fp8, Int4, Int8
from rtpjax.plan import presets

# One of each number of heads and their size; steps have what is left of them on several GPUs.
_ATTENTION_MODELS = ("smollm2-135m", "qwen2.5-0.5b", "llama-3.1-8b", "qwen3-32b")
# The smallest widths, biases, and the widest.
_ROW_MATMUL_MODELS = ("smollm2-135m", "qwen2.5-0.5b", "llama-3.1-8b")
_ROTATE_MODELS = ("smollm2-135m", "qwen3-8b")
_CACHE_MODELS = ("smollm2-135m", "llama-3.1-8b")
PAGE_SIZE, MAX_MODEL_LEN, NUM_PAGES = 64, 4096, 1031


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op: positional arguments as (trees of) shapes, and keyword arguments."""

    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@functools.cache
def ops() -> dict[str, Op]:
    """All ops of pallas_kernels by name: a module there that defines OP has one."""
    found = {}
    for info in pkgutil.iter_modules(pallas_kernels.__path__):
        op = getattr(importlib.import_module(f"pallas_kernels.{info.name}"), "OP", None)
        if isinstance(op, Op):
            found[op.name] = op
    return found


def is_supported(implementation: Implementation, case: Case, gpu: Gpu) -> bool:
    """Whether an implementation takes the case on a GPU, or refuses it before it is lowered."""
    if implementation.supports is None:
        return True
    major, minor = gpu.compute_capability
    try:
        implementation.supports(Target("gpu", 10 * major + minor), *case.arguments, **case.options)
    except UnsupportedError:
        return False
    return True


def cases(op_name: str) -> list[Case]:
    """The shapes of an op.

    Raises:
        ValueError: It has none.
    """
    if op_name not in _MAKERS:
        raise ValueError(
            f"op {op_name} has no shapes in {__name__}: add what real models call it with"
        )
    return _MAKERS[op_name]()


def _paged_attention() -> list[Case]:
    configs = {name: ModelConfig.from_hf(presets.load(name)) for name in _ATTENTION_MODELS}
    return [
        _attention_case(name, config, kind, num_tokens)
        for name, config in configs.items()
        for kind, num_tokens in (("decode", 8), ("decode", 64), ("extend", 512))
    ]


def _attention_case(name: str, config: ModelConfig, kind: str, num_tokens: int) -> Case:
    rows = num_tokens if kind == "decode" else 8
    N, K, H = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def ints(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    pages = jax.ShapeDtypeStruct((NUM_PAGES, PAGE_SIZE, K, H), jnp.bfloat16)
    arguments = (
        jax.ShapeDtypeStruct((num_tokens, N, H), jnp.bfloat16),
        pages,
        pages,
        ints(rows, MAX_MODEL_LEN // PAGE_SIZE),
        ints(rows + 1),
        ints(rows),
    )
    options = {"scale": H**-0.5, "decode": kind == "decode"}
    return Case(f"{name} {kind}[{num_tokens}]", arguments, options)


def _quantized_matmul() -> list[Case]:
    """A query projection for few rows: int8 weights of every model, the other formats of one."""
    configs = {name: ModelConfig.from_hf(presets.load(name)) for name in presets.names()}
    cases = []
    for name, config in configs.items():
        out, size = config.num_attention_heads * config.head_dim, config.hidden_size
        cases.append(_product_case(f"{name} q_proj", Int8(), out, size))
    return cases + [
        _product_case("llama-3.1-8b q_proj", format, 4096, 4096)
        for format in (Int8(128), Int4(128), Int4(128, has_zeros=True), Fp8(), Fp8(128))
    ]


def _product_case(name: str, format: Int8 | Int4 | Fp8, out: int, size: int) -> Case:
    x = jax.ShapeDtypeStruct((8, size), jnp.bfloat16)
    return Case(f"{name} {_name_of(format)}[8]", (x, *_stored(format, out, size)), {})


def _name_of(format: Int8 | Int4 | Fp8) -> str:
    zeros = " zeros" if format.has_zeros else ""
    group = "" if format.group is None else f"/{format.group}"
    return f"{type(format).__name__.lower()}{group}{zeros}"


def _stored(format: Int8 | Int4 | Fp8, out: int, size: int) -> Quantized:
    """A weight of a format as shapes."""
    axes = ("embed", "embed")
    params = nnx.eval_shape(
        lambda: format.declare((out, size), axes, jnp.bfloat16, rngs=nnx.Rngs(0))
    )
    return format.operand(
        {
            name: jax.ShapeDtypeStruct(param.get_value().shape, param.get_value().dtype)  # type: ignore[misc]
            for name, param in params.items()
        }
    )


def _grouped_matmul() -> list[Case]:
    """An up projection of Qwen3-30B-A3B's experts for 8 rows of 8 experts each."""
    x = jax.ShapeDtypeStruct((64, 2048), jnp.bfloat16)
    weight = jax.ShapeDtypeStruct((128, 768, 2048), jnp.bfloat16)
    starts = jax.ShapeDtypeStruct((129,), jnp.int32)
    return [Case("qwen3-30b-a3b up_proj[64]", (x, weight, starts), {})]


def _row_matmul() -> list[Case]:
    """The four kernels of a layer without attention, with few and with the most rows."""
    configs = {name: ModelConfig.from_hf(presets.load(name)) for name in _ROW_MATMUL_MODELS}
    plain = [
        Case(f"{name} {what}[{rows}]", (operands,), {"around": around})
        for name, config in configs.items()
        for rows in (1, MAX_ROWS)
        for what, operands, around in _products(config, rows)
    ]
    # The kernels with the most of them: two weights, and a norm.
    _, gate_up, around = _products(configs["llama-3.1-8b"], MAX_ROWS)[2]
    return plain + [
        Case(
            f"llama-3.1-8b {_name_of(format)} gate_up[{MAX_ROWS}]",
            (gate_up._replace(weights=tuple(_stored(format, *w.shape) for w in gate_up.weights)),),
            {"around": around},
        )
        for format in (Int8(), Int4(128), Int4(128, has_zeros=True), Fp8(), Fp8(128))
    ]


def _products(config: ModelConfig, rows: int) -> list[tuple[str, Operands, Around]]:
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_attention_heads * H, config.num_key_value_heads * H

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16)

    def operands(
        outputs: tuple[int, ...], inputs: int, *, normed: bool, has_bias: bool = False
    ) -> Operands:
        return Operands(
            x=array(rows, inputs),
            weights=tuple(array(n, inputs) for n in outputs),
            biases=tuple(array(n) if has_bias else None for n in outputs),
            norm=array(inputs) if normed else None,
            residual=None if normed else array(rows, D),
        )

    plain = Around(None, config.rms_norm_eps, jnp.dtype(jnp.bfloat16))
    gated = dataclasses.replace(plain, gated=config.hidden_act)
    qkv = operands((heads, kv_heads, kv_heads), D, normed=True, has_bias=config.attention_bias)
    return [
        ("qkv", qkv, plain),
        ("o_proj", operands((D,), heads, normed=False), plain),
        ("gate_up", operands((F, F), D, normed=True), gated),
        ("down_proj", operands((D,), F, normed=False), plain),
    ]


def _rotate() -> list[Case]:
    """Heads of one size and another, with and without norms."""
    configs = {name: ModelConfig.from_hf(presets.load(name)) for name in _ROTATE_MODELS}
    return [
        _rotate_case(name, config, rows) for name, config in configs.items() for rows in (1, 64)
    ]


def _rotate_case(name: str, config: ModelConfig, rows: int) -> Case:
    H, rope = config.head_dim, config.layer_ropes[0]
    assert rope is not None
    norm = jax.ShapeDtypeStruct((H,), jnp.bfloat16) if config.qk_norm else None
    angles = jax.ShapeDtypeStruct((rows, rope.rotary_dim // 2), jnp.float32)
    q, k = (
        jax.ShapeDtypeStruct((rows, heads, H), jnp.bfloat16)
        for heads in (config.num_attention_heads, config.num_key_value_heads)
    )
    operands = rotate.Operands(q, k, angles, angles, norm, norm)
    return Case(f"{name} q,k[{rows}]", (operands,), {"eps": config.rms_norm_eps})


def _quantized_write() -> list[Case]:
    """Decode steps with caches of each format: one and many rows, heads of each size."""
    configs = {name: ModelConfig.from_hf(presets.load(name)) for name in _CACHE_MODELS}
    shapes = {name: (c.num_key_value_heads, c.head_dim) for name, c in configs.items()}
    shapes |= {"phi-2": (32, 80), "phi-3-mini": (32, 96), "gemma-2-2b": (4, 256)}
    return [
        _write_case(f"{name} {dtype}[{rows}]", heads, dtype, rows)
        for name, heads in shapes.items()
        for dtype in ("int8", "float8_e4m3fn")
        for rows in ((1, 64) if name == "llama-3.1-8b" else (8,))
    ]


def _write_case(name: str, heads: tuple[int, int], dtype: str, rows: int) -> Case:
    pages = jax.ShapeDtypeStruct((NUM_PAGES, PAGE_SIZE, *heads), jnp.dtype(dtype))
    scales = jax.ShapeDtypeStruct((NUM_PAGES, heads[0]), jnp.float32)
    new = jax.ShapeDtypeStruct((rows, *heads), jnp.bfloat16)
    slots, query_start = (jax.ShapeDtypeStruct((n,), jnp.int32) for n in (rows, rows + 1))
    cache = pages, pages, scales, scales
    operands = quantized_write.Operands(*cache, new, new, slots, query_start)
    return Case(name, (operands,), {})


_MAKERS: dict[str, Callable[[], list[Case]]] = {
    "paged_attention": _paged_attention,
    "quantized_matmul": _quantized_matmul,
    "grouped_matmul": _grouped_matmul,
    "row_matmul": _row_matmul,
    "rotate": _rotate,
    "quantized_write": _quantized_write,
}
