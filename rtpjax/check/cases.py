"""Calls of ops with numbers that are made on the device.

A case is a recipe: shapes are known before there are numbers, so that programs are compiled while
others run, and a process that is started again makes the same numbers. Only where numbers are (page
tables, slots, rows of experts) is made with numpy, as small arrays; the weights of a large model
would take numpy minutes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import cases as attention
from pallas_kernels import quantized_write
from pallas_kernels.quantized import pack_int4
from pallas_kernels.shapes import ATTENTION_SHAPES, AttentionShape

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments and further arrays by name: (trees of) arrays."""

_NUM_DRAWN = 2**20 - 3  # a prime: no row or tile of an array is a copy of another
_STRIDE = 1_000_003  # from where one array of a case begins to where the next one does


class Drawn(NamedTuple):
    """Random numbers that all cases take theirs from, as often as they need.

    Generators are much code: a program of its own for each case takes longer to compile than the
    kernels do.

    Attributes:
        normal: float32 `[_NUM_DRAWN]`, from the standard normal distribution.
        bits: uint32 `[_NUM_DRAWN]`.
    """

    normal: jax.Array
    bits: jax.Array


def draw() -> Drawn:
    """Draws them; to be compiled."""
    keys = jax.random.split(jax.random.key(0))
    return Drawn(
        jax.random.normal(keys[0], (_NUM_DRAWN,), jnp.float32),
        jax.random.bits(keys[1], (_NUM_DRAWN,), jnp.uint32),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        name: The shape.
        make: Makes the numbers from drawn ones and `places`. It can be traced and pickled.
        places: (A tree of) small arrays of numpy: where things are.
        options: Static keyword arguments of the op.
        num_rows: Leading rows of the result that have a meaning; None for all.
        tolerance: Of an element, relative to 1 + its size; None goes by the result's format.
        tolerance_of: Another one for implementations that round more, by name.
    """

    name: str
    make: Callable[[Drawn, Any], Call]
    places: Any = ()
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    num_rows: int | None = None
    tolerance: float | None = None
    tolerance_of: dict[str, float] = dataclasses.field(default_factory=dict)

    def shapes(self) -> Call:
        """The arrays' shapes and dtypes."""
        return jax.eval_shape(self.make, jax.eval_shape(draw), self.places)


def planned(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Case:
    """Random numbers in shapes: (trees of) ShapeDtypeStruct."""
    # act(gate) * up has the error of gate times up, which is several times its mean somewhere.
    is_gated = getattr(options.get("around"), "gated", None) is not None
    tolerance = 4 * attention.TOLERANCE["bfloat16"] if is_gated else None
    return Case(name, partial(_random_call, arguments), options=options, tolerance=tolerance)


def _random_call(arguments: tuple[Any, ...], drawn: Drawn, places: tuple[()]) -> Call:
    del places
    leaves, tree = jax.tree.flatten(arguments)
    made = [_random(drawn, i, leaf) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(tree, made), {}


def _random(drawn: Drawn, i: int, shape: jax.ShapeDtypeStruct) -> jax.Array:
    """Numbers of about 1, bytes of every value; counts and places (int32) are 0."""
    if shape.dtype == jnp.int32:
        return jnp.zeros(shape.shape, jnp.int32)
    if jnp.issubdtype(shape.dtype, jnp.integer):
        info = jnp.iinfo(shape.dtype)
        return _integers(drawn, i, shape.shape, int(info.min), int(info.max) + 1, shape.dtype)
    return _normal(drawn, i, shape.shape, shape.dtype)


def _take(numbers: jax.Array, i: int, shape: tuple[int, ...]) -> jax.Array:
    """The i-th array of a case: consecutive numbers, from the beginning again where they end."""
    start, count = i * _STRIDE % len(numbers), math.prod(shape)
    repeated = jnp.tile(numbers, -(-(start + count) // len(numbers)))
    return repeated[start : start + count].reshape(shape)


def _normal(drawn: Drawn, i: int, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    return _take(drawn.normal, i, shape).astype(dtype)


def _uniform(drawn: Drawn, i: int, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
    part = (_take(drawn.bits, i, shape) >> 8).astype(jnp.float32) * 2.0**-24
    return low + (high - low) * part


def _integers(
    drawn: Drawn, i: int, shape: tuple[int, ...], low: int, end: int, dtype: Any = jnp.int32
) -> jax.Array:
    """From low on, end excluded."""
    part = (_take(drawn.bits, i, shape) % jnp.uint32(end - low)).astype(jnp.int32)
    return (low + part).astype(dtype)


def attention_cases(small: bool) -> Iterator[Case]:
    """Decodes and mixed rows; random pages, NaN wherever a row owns nothing, lengths at edges."""
    if small:
        shapes = [attention.reduced(shape) for shape in attention.DISTINCT_SHAPES]
    else:
        shapes = list(ATTENTION_SHAPES)
    for i, shape in enumerate(shapes):
        page_size = 16 if small else (16, 64)[i % 2]
        contexts = attention.decode_lens(page_size)
        yield _attention_case(shape, [1] * len(contexts), contexts, page_size, decode=True)
        yield _attention_case(shape, *attention.mixed_lens(page_size), page_size, decode=False)


def _attention_case(
    shape: AttentionShape, query_lens: list[int], contexts: list[int], page_size: int, decode: bool
) -> Case:
    places = attention.layout(
        np.random.default_rng(0), query_lens, contexts, page_size=page_size, num_shared=2
    )
    num_tokens = sum(query_lens)
    options = {**attention.scores_of(shape)._asdict(), "decode": decode}
    name = f"{shape.name} {'decode' if decode else 'mixed'}"
    make = partial(_attention_call, shape, num_tokens)
    return Case(name, make, places, options, num_rows=num_tokens)


def _attention_call(
    shape: AttentionShape, num_tokens: int, drawn: Drawn, places: attention.Layout
) -> Call:
    N, K, H = shape.num_heads, shape.num_kv_heads, shape.head_dim
    dtype = jnp.dtype(shape.cache_dtype)
    is_owned = jnp.asarray(places.is_owned)
    k, v = (_pages(drawn, i, is_owned, (K, H), dtype) for i in range(2))
    named: dict[str, Any] = {"k_scales": None, "v_scales": None}
    if shape.is_quantized:
        top = quantized_write.LARGEST[dtype.name]
        page_is_owned = is_owned.any(axis=1)[:, None]
        for i, name in enumerate(named, 2):
            scales = _uniform(drawn, i, (len(is_owned), K), 1, 3) / top
            named[name] = jnp.where(page_is_owned, scales, jnp.nan)
    named["sinks"] = jnp.linspace(-1, 2, N) if shape.has_sinks else None
    q = _normal(drawn, 4, (num_tokens, N, H), jnp.bfloat16 if shape.is_quantized else dtype)
    rows = (places.page_table, places.query_start, places.context_lens)
    return (q, k, v, *map(jnp.asarray, rows)), named


def _pages(
    drawn: Drawn, i: int, is_owned: jax.Array, heads: tuple[int, int], dtype: Any
) -> jax.Array:
    """Pages `[P, page_size, K, H]`, poisoned where is_owned `[P, page_size]` is not."""
    values = _normal(drawn, i, (*is_owned.shape, *heads))
    if dtype == jnp.int8:
        values = jnp.clip(jnp.round(values * 40), -127, 127)
    elif dtype == jnp.float8_e4m3fn:
        values = jnp.clip(values * 140, -448, 448)
    poison = 127 if dtype == jnp.int8 else jnp.nan  # int8 has no NaN: its scales have
    return jnp.where(is_owned[:, :, None, None], values, poison).astype(dtype)


def quantized_matmul_cases(small: bool) -> Iterator[Case]:
    """int8 weights, and int4 of two sizes of groups with zeros."""
    size = (80, 512) if small else (4096, 4096)
    shape = f"{size[0]} x {size[1]}"
    for rows in (3,) if small else (1, 8, 64):
        make = partial(_int8_call, rows, size)
        yield Case(f"int8 [{rows}] {shape}", make, tolerance=1e-3)
        for group in (32, 128):
            make = partial(_int4_call, rows, size, group)
            yield Case(
                f"int4 group {group} [{rows}] {shape}",
                make,
                tolerance=1e-3,
                tolerance_of={"xla": 2e-2},  # it multiplies weights that are rounded to bf16
            )


def _int8_call(rows: int, size: tuple[int, int], drawn: Drawn, places: tuple[()]) -> Call:
    del places
    x = _normal(drawn, 0, (rows, size[1]), jnp.bfloat16)
    weight = _integers(drawn, 1, size, -127, 128, jnp.int8)
    scales = _uniform(drawn, 2, (size[0], 1), 0.001, 0.01)
    return (x, weight, scales), {}


def _int4_call(
    rows: int, size: tuple[int, int], group: int, drawn: Drawn, places: tuple[()]
) -> Call:
    del places
    x = _normal(drawn, 0, (rows, size[1]), jnp.bfloat16)
    packed = pack_int4(_integers(drawn, 1, size, 0, 16), group)
    groups = (size[0], size[1] // group)
    scales = _uniform(drawn, 2, groups, 0.01, 0.1)
    zeros = _integers(drawn, 3, groups, 0, 16, jnp.uint8)
    return (x, packed, scales, zeros), {}


def grouped_matmul_cases(small: bool) -> Iterator[Case]:
    """Experts without rows, and rows of no expert."""
    rng = np.random.default_rng(0)
    E, out, size = (4, 70, 128) if small else (16, 768, 2048)
    for rows in (24,) if small else (16, 256):
        counts = rng.multinomial(rows - 3, np.ones(E) / E)
        counts[1], counts[2] = 0, counts[1] + counts[2]
        starts = np.cumsum([0, *counts], dtype=np.int32)
        make = partial(_grouped_call, rows, (E, out, size))
        name = f"[{rows}] {E} x {out} x {size}"
        yield Case(name, make, starts, num_rows=rows - 3, tolerance=1e-3)


def _grouped_call(rows: int, shape: tuple[int, int, int], drawn: Drawn, starts: np.ndarray) -> Call:
    x = _normal(drawn, 0, (rows, shape[2]), jnp.bfloat16)
    weight = (_normal(drawn, 1, shape) / 10).astype(jnp.bfloat16)
    return (x, weight, jnp.asarray(starts)), {}


def quantized_write_cases(small: bool) -> Iterator[Case]:
    """Pages that begin, stay as they are or are scaled anew, some with two tokens; padding."""
    shapes = [(2, 64, 6)] if small else [(8, 128, 1), (8, 128, 64), (3, 64, 8), (4, 256, 8)]
    for K, H, rows in shapes:
        for dtype, tolerance in (("int8", 0.03), ("float8_e4m3fn", 0.15)):  # a step of rounding
            make = partial(_write_call, (rows, K, H), dtype)
            name = f"{dtype} [{rows}] {K} x {H}"
            yield Case(name, make, _write_places(rows), tolerance=tolerance)


_WRITE_PAGE_SIZE = 16


def _write_places(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots `[rows]` and tokens that pages have `[rows + 1]`, -1 for a page of no row.

    Of four rows the third is of the second one's sequence, and the fourth padding.
    """
    slots, held = np.zeros(rows, np.int32), np.full(rows + 1, -1, np.int32)
    held[0] = 0  # padding's page
    for row in range(rows):
        page, offset = row + 1, (7, 14, 0)[row % 3]
        if row % 4 < 2:
            held[page] = offset
            slots[row] = page * _WRITE_PAGE_SIZE + offset
        elif row % 4 == 2:
            slots[row] = slots[row - 1] + 1
    return slots, held


def _write_call(
    shape: tuple[int, int, int], dtype: str, drawn: Drawn, places: tuple[np.ndarray, np.ndarray]
) -> Call:
    """Pages of no row have the largest numbers.

    New ones are about 100, so that scales are about 1 and their errors count; twins scale what
    stands behind a page's tokens too, which is 0 here.
    """
    (rows, K, H), (slots, held) = shape, map(jnp.asarray, places)
    full = (2, rows + 1, _WRITE_PAGE_SIZE, K, H)
    values = _integers(drawn, 0, full, -100, 101, jnp.float32)
    is_held = jnp.arange(_WRITE_PAGE_SIZE)[None, :] < held[:, None]
    values = jnp.where(is_held[None, :, :, None, None], values, 0.0)
    is_foreign = (held < 0)[None, :, None]
    largest = quantized_write.LARGEST[dtype]
    pages = jnp.where(is_foreign[..., None, None], largest, values).astype(dtype)
    exponents = _integers(drawn, 1, (2, rows + 1, K), -2, 2, jnp.float32)
    has_scale = (jnp.arange(rows + 1) > 0)[None, :, None]
    scales = jnp.where(has_scale, jnp.where(is_foreign, 9.0, jnp.exp2(exponents)), 0.0)
    new = 100 * _normal(drawn, 2, (2, rows, K, H))
    new = jnp.where((slots > 0)[None, :, None, None], new, 0.0).astype(jnp.bfloat16)
    starts = jnp.arange(rows + 1, dtype=jnp.int32)
    cache = pages[0], pages[1], scales[0], scales[1]
    operands = quantized_write.Operands(*cache, new[0], new[1], slots, starts)
    return (operands,), {}


MAKERS: dict[str, Callable[[bool], Iterator[Case]]] = {
    "paged_attention": attention_cases,
    "quantized_matmul": quantized_matmul_cases,
    "grouped_matmul": grouped_matmul_cases,
    "quantized_write": quantized_write_cases,
}
"""By op: its cases, small ones for interpret mode. Other ops have those of rtpjax.plan."""
