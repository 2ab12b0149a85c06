"""Writes new keys and values into a paged cache of int8 or float8, and keeps its scales.

A page and kv head has one scale for all of its tokens, but tokens come a few at a time:

    step      new tokens    scale of the page             what the page holds before
    extend    0 1 2 3 4     fits the largest of them      nothing of its own: token 0 begins it, and
                                                          the scale it had belongs to who had it
    decode    5             stays: the token is small     stays
    decode    6             grows: the token is larger    times old / new scale, rounded again

int8: a scale that grows, grows by a quarter at least. That halves how often pages change, and each
change rounds: the sum of their errors is below 0.5 / (1 - 1 / 1.25) = 2.5 steps of the last scale.
float8: scales are powers of two. Its steps are relative, so that this costs no precision, and a
page that changes keeps its numbers as they are (but for those that fall below the smallest one).

XLA makes about six kernels of it for keys and as many for values. Here it is one, in place:

    grid (tokens T, kv heads K, 2)     slots   17 │ 34 │ 0 │ 18 │ 0       pages of 16 tokens
    program (0, head, keys)            page     1 │  2 │ - │  1 │ -       writes tokens 0 and 3
    program (3, head, keys)                                               leaves token 3 to 0

Neighbours of one sequence can be tokens of a decode step, each a row of its own (prompts that are
scored), in any order. The first token's program does all of its page, so that no two write to one.
Padding tokens point into page 0, which nothing reads, and are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike

from pallas_kernels.paged_attention import as_float32
from pallas_kernels.paged_tiles import (
    FLOAT_CACHES,
    QUANTIZED_CACHES,
    Ref,
    float8_check,
    power_of_two,
    size_check,
)
from pallas_kernels.registry import Op, Target, expect, refuse

# The largest number of each format that needs scales. uint8 has the bits of float8_e4m3fn.
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "uint8": 448.0}
_LEAST_GROWTH = 1.25
MAX_TOKENS = 1024  # every program reads all slots
_TILE = 2**12  # numbers of a page that are brought to a new scale at once

State = TypeVar("State")


class Operands(NamedTuple):
    """Arrays of a call, or refs to them in the kernel; quantized_write documents them."""

    k_pages: Ref
    v_pages: Ref
    k_scales: Ref
    v_scales: Ref
    k: Ref
    v: Ref
    slots: Ref
    query_start: Ref


Written = tuple[jax.Array, jax.Array, jax.Array, jax.Array]
"""k_pages, v_pages, k_scales and v_scales."""


def _check(operands: Operands) -> None:
    """What every implementation asks of the shapes.

    Raises:
        ValueError: Names the argument, what it is and what it should be.
    """
    check = partial(expect, OP.name)
    check("k_pages", operands.k_pages, ("P", "page_size", "K", "H"))
    P, _, K, H = operands.k_pages.shape
    check("v_pages", operands.v_pages, operands.k_pages.shape, operands.k_pages.dtype)
    check("k_scales", operands.k_scales, (P, K), jnp.float32)
    check("v_scales", operands.v_scales, (P, K), jnp.float32)
    check("k", operands.k, ("T", K, H))
    check("v", operands.v, operands.k.shape, operands.k.dtype)
    check("slots", operands.slots, operands.k.shape[:1], jnp.int32)
    check("query_start", operands.query_start, ("B + 1",), jnp.int32)
    if operands.k_pages.dtype.name not in LARGEST:
        raise ValueError(
            f"{OP.name}: a cache of {operands.k_pages.dtype} has no scales; scatter into it."
        )


OP = Op("quantized_write", _check)


def quantized_write(operands: Operands, *, implementation: str | None = None) -> Written:
    """The cache with a step's keys and values, in place if it is donated.

    Args:
        operands: k_pages `[P, page_size, K, H]` in int8, float8_e4m3fn or (XLA only) its bits in
            uint8; v_pages likewise; k_scales float32 `[P, K]`, what multiplies the numbers of a
            page and kv head, and v_scales; new keys k `[T, K, H]` and values v; slots int32 `[T]`,
            page * page_size + offset, in page 0 for padding; query_start int32 `[B + 1]`, row b's
            tokens are query_start[b]:query_start[b + 1], consecutive in their sequence. A page's
            tokens in front of the step's first one there are what it holds.
        implementation: A name from the registry, or None for the platform's default. The kernel is
            for decode steps: it writes a page's tokens one after another.

    Returns:
        The four arrays. What stands in page 0, and in a page behind its last token, is unspecified.
    """
    return OP(operands, implementation=implementation)  # type: ignore[return-value]


def _grown(most: jax.Array, before: jax.Array, dtype: DTypeLike) -> jax.Array:
    """Scales of pages that had `before` (0 for nothing there) and get numbers of up to `most`."""
    if jnp.dtype(dtype) == jnp.int8:
        needed = most * (1 / LARGEST["int8"])
        return jnp.where(needed > before, jnp.maximum(needed, _LEAST_GROWTH * before), before)
    # The least power of two that is not below most / 448, where 448 = 1.75 * 2 ** 8: the exponent
    # of most / 2 ** 8, and one more if its fraction is above 0.75.
    bits = lax.bitcast_convert_type(most * 2.0**-8, jnp.int32)
    bits = (bits + 0x1FFFFF) & -0x800000
    fitting = lax.bitcast_convert_type(bits, jnp.float32)
    return jnp.where(most > LARGEST["float8_e4m3fn"] * before, fitting, before)


def _rounded(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """x in a format of fewer bits; what is too large becomes the largest number, never NaN."""
    largest = LARGEST[jnp.dtype(dtype).name]
    if jnp.dtype(dtype) == jnp.int8:
        return jnp.clip(jnp.round(x), -largest, largest).astype(jnp.int8)
    float8 = jnp.clip(x, -largest, largest).astype(jnp.float8_e4m3fn)
    return lax.bitcast_convert_type(float8, dtype)


def _supports(target: Target, operands: Operands) -> None:
    pages, k = operands.k_pages, operands.k
    formats, quantized = (
        [jnp.dtype(d).name for d in dtypes] for dtypes in (FLOAT_CACHES, QUANTIZED_CACHES)
    )
    refuse(
        "xla",
        (
            target.compute_capability >= 80,
            f"compute capability {target.compute_capability}",
            "80 and later",
        ),
        (k.dtype.name in formats, f"k of {k.dtype}", f"one of {', '.join(formats)}"),
        (
            pages.dtype.name in quantized,
            f"a cache of {pages.dtype}",
            f"one of {', '.join(quantized)}",
        ),
        (pages.shape[3] <= 512, f"head_dim {pages.shape[3]}", "up to 512"),
        (k.shape[0] <= MAX_TOKENS, f"a step of {k.shape[0]} tokens", f"up to {MAX_TOKENS}"),
        float8_check(target, pages),
        size_check(pages),
    )


@OP.register("pallas", "gpu", supports=_supports)
def pallas(operands: Operands, *, interpret: bool = False) -> Written:
    """The kernel; interpret runs it on the CPU, slowly: for tests."""
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    cache = operands[:4]
    call = pl.pallas_call(
        partial(_kernel, is_interpreted=interpret),
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in cache],
        grid=(operands.k.shape[0], operands.k.shape[1], 2),
        in_specs=[jax.tree.map(lambda _: anywhere, operands)],
        out_specs=[anywhere] * len(cache),
        input_output_aliases={i: i for i in range(len(cache))},
        compiler_params=plgpu.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="quantized_write",
    )
    return tuple(call(operands))


class _Tokens(NamedTuple):
    """The step's tokens that go into one page.

    Attributes:
        numbers: int32 `[BLOCK_T]`, 0 1 2 ...
        offsets: int32 `[BLOCK_T]`, their places in their pages.
        are_here: bool `[BLOCK_T]`, whether they go into this page.
    """

    numbers: jax.Array
    offsets: jax.Array
    are_here: jax.Array

    @staticmethod
    def of(slots: Ref, page: jax.Array, page_size: int) -> _Tokens:
        numbers = lax.iota(jnp.int32, power_of_two(slots.shape[0]))
        is_token = numbers < slots.shape[0]
        places = plgpu.load(slots.at[numbers], mask=is_token, other=0)
        are_here = is_token & (lax.div(places, page_size) == page)
        return _Tokens(numbers, lax.rem(places, page_size), are_here)

    def after(self, token: jax.Array | int) -> jax.Array:
        """The next one's number, BLOCK_T if there is none."""
        is_next = self.are_here & (self.numbers > token)
        return jnp.where(is_next, self.numbers, self.numbers.size).min(axis=0)

    def num_held(self, page_size: int) -> jax.Array:
        """How many tokens the page had before: those in front of the first one."""
        return jnp.where(self.are_here, self.offsets, page_size).min(axis=0)

    def each(self, body: Callable[[jax.Array, State], State], state: State) -> State:
        """The last of state = body(token, state)."""

        def go_on(carry: tuple[jax.Array, State]) -> tuple[jax.Array, State]:
            token, state = carry
            return self.after(token), body(token, state)

        start = self.after(-1), state
        return lax.while_loop(lambda carry: carry[0] < self.numbers.size, go_on, start)[1]


def _kernel(
    operands: Operands,
    k_pages: Ref,
    v_pages: Ref,
    k_scales: Ref,
    v_scales: Ref,
    *,
    is_interpreted: bool,
) -> None:
    """One kv head's keys, or values, of the page that a token is the first to go into."""
    token, head, which = (pl.program_id(axis) for axis in range(3))
    page_size = k_pages.shape[1]
    page = lax.div(operands.slots[token], page_size)
    tokens = _Tokens.of(operands.slots, page, page_size)
    is_first = (page > 0) & (tokens.after(-1) == token)
    for i, (values, pages, scales) in enumerate(
        ((operands.k, k_pages, k_scales), (operands.v, v_pages, v_scales))
    ):
        head_of_page = _Head(values, operands.slots, pages, scales, page, head)
        pl.when(is_first & (which == i))(partial(head_of_page.write, tokens, is_interpreted))


class _Head(NamedTuple):
    """One kv head of a page: where its new numbers come from, and where they go."""

    values: Ref
    slots: Ref
    pages: Ref
    scales: Ref
    page: jax.Array
    head: jax.Array

    @property
    def columns(self) -> tuple[jax.Array, jax.Array]:
        """Column numbers `[BLOCK_H]`, and which of them a head has."""
        columns = lax.iota(jnp.int32, power_of_two(self.pages.shape[3]))
        return columns, columns < self.pages.shape[3]

    def value(self, token: jax.Array) -> jax.Array:
        """float32 `[BLOCK_H]`."""
        columns, in_head = self.columns
        place = self.values.at[token, self.head, columns]
        return plgpu.load(place, mask=in_head, other=0.0).astype(jnp.float32)

    def write(self, tokens: _Tokens, is_interpreted: bool) -> None:
        """Fits the scale to the tokens, what the page holds to the scale, and puts them there."""
        page_size, dtype = self.pages.shape[1], self.pages.dtype
        columns, in_head = self.columns
        num_held = tokens.num_held(page_size)
        before = jnp.where(num_held > 0, self.scales[self.page, self.head], 0.0)
        most = tokens.each(
            lambda token, most: jnp.maximum(most, jnp.abs(self.value(token)).max(axis=0)),
            jnp.float32(0),
        )
        scale = _grown(most, before, dtype)
        if not is_interpreted:  # where it does not exist
            plgpu.debug_barrier()  # all threads have read the scale that one of them replaces
        self.scales[self.page, self.head] = scale
        pl.when((before > 0) & (scale > before))(lambda: self._rescale(before / scale, num_held))
        unit = jnp.where(scale > 0, scale, 1.0)

        def put(token: jax.Array, count: jax.Array) -> jax.Array:
            offset = lax.rem(self.slots[token], page_size)
            place = self.pages.at[self.page, offset, self.head, columns]
            plgpu.store(place, _narrowed(self.value(token) / unit, dtype), mask=in_head)
            return count + 1

        tokens.each(put, jnp.int32(0))

    def _rescale(self, ratio: jax.Array, num_held: jax.Array) -> None:
        """Brings the first tokens of the page to another scale."""
        columns, in_head = self.columns
        tile = min(power_of_two(self.pages.shape[1]), max(1, _TILE // columns.size))

        def rescale_tile(i: jax.Array, count: jax.Array) -> jax.Array:
            offsets = i * tile + lax.iota(jnp.int32, tile)
            mask = (offsets < num_held)[:, None] & in_head[None, :]
            place = self.pages.at[self.page, offsets[:, None], self.head, columns[None, :]]
            held = plgpu.load(place, mask=mask, other=jnp.zeros((), self.pages.dtype))
            held = _narrowed(held.astype(jnp.float32) * ratio, self.pages.dtype)
            plgpu.store(place, held, mask=mask)
            return count + 1

        lax.fori_loop(0, lax.div(num_held + (tile - 1), tile), rescale_tile, jnp.int32(0))


def _narrowed(x: jax.Array, dtype: DTypeLike) -> jax.Array:
    """`_rounded` in the kernel: Pallas on Triton has no round."""
    if jnp.dtype(dtype) != jnp.int8:
        return _rounded(x, dtype)
    x = jnp.clip(x, -LARGEST["int8"], LARGEST["int8"])
    below = jnp.floor(x)
    rest, is_odd = x - below, (below.astype(jnp.int32) & 1) == 1
    is_up = (rest > 0.5) | ((rest == 0.5) & is_odd)
    return (below + jnp.where(is_up, 1.0, 0.0)).astype(jnp.int8)


@OP.register("xla", "cpu", "gpu")
def xla(operands: Operands) -> Written:
    """Scatters, and a gather of one page a row: only the page of a row's first token holds some."""
    k_pages, k_scales = _written(operands.k_pages, operands.k_scales, operands.k, operands)
    v_pages, v_scales = _written(operands.v_pages, operands.v_scales, operands.v, operands)
    return k_pages, v_pages, k_scales, v_scales


def _written(
    pages: jax.Array, scales: jax.Array, values: jax.Array, operands: Operands
) -> tuple[jax.Array, jax.Array]:
    """Keys, or values: pages `[P, page_size, K, H]` and their scales with values `[T, K, H]`."""
    page_size = pages.shape[1]
    before, scales = _fit(scales, values, pages.dtype, operands.slots, page_size)
    page = operands.slots // page_size
    pages = _rescaled(pages, before, scales, page, operands.query_start)
    return scatter(pages, _quantized(values, scales[page], pages.dtype), operands.slots), scales


def scatter(pages: jax.Array, values: jax.Array, slots: jax.Array) -> jax.Array:
    """pages `[P, page_size, K, H]` with values `[T, K, H]` of their format at the slots.

    Padding is left out. No two of the others go into one slot: knowing that, XLA for GPUs writes
    plainly, and not with an atomic exchange for each number.

    The pages keep their shape: where there is one head, XLA for CPUs gives a reshaped cache another
    layout of the same bytes, and copies all of it to get back.
    """
    num_pages, page_size = pages.shape[:2]
    nowhere = num_pages * page_size + jnp.arange(slots.shape[0], dtype=slots.dtype)
    slots = jnp.where(slots < page_size, nowhere, slots)
    at = slots // page_size, slots % page_size
    return pages.at[at].set(values, mode="drop", unique_indices=True)


def _fit(
    scales: jax.Array, values: jax.Array, dtype: DTypeLike, slots: jax.Array, page_size: int
) -> tuple[jax.Array, jax.Array]:
    """Scales that fit the step's values.

    Returns:
        The scale before of each token's page `[T, K]`, 0 if the page is begun in this step, and
        all scales `[P, K]`.
    """
    page, num_pages = slots // page_size, scales.shape[0]
    begun = jnp.where(slots % page_size == 0, page, num_pages)
    most = jnp.abs(values.astype(jnp.float32)).max(-1)
    # 0, but known only with the values: XLA writes it to a copy if the layer before may still read.
    scales = scales.at[begun].set(jnp.minimum(most, 0.0), mode="drop")
    before = _read(scales, page)
    return before, scales.at[page].max(_grown(most, before, dtype))


def _rescaled(
    pages: jax.Array,
    before: jax.Array,
    scales: jax.Array,
    page: jax.Array,
    query_start: jax.Array,
) -> jax.Array:
    """Brings what the pages of the rows' first tokens hold to the scales that these have now.

    Pages that keep their scales are not written; page 0 is read in their place, which is in the
    processor's cache. Rows that find the same page change it alike.

    Args:
        pages: `[P, page_size, K, H]`.
        before: float32 `[T, K]`, scales of the tokens' pages as they were; 0 for nothing there.
        scales: float32 `[P, K]`, as they are now.
        page: int32 `[T]`, the tokens' pages.
        query_start: int32 `[B + 1]`.
    """
    first = jnp.minimum(query_start[:-1], page.size - 1)
    old, new = before[first], scales[page[first]]
    grows = ((old > 0) & (new > old)).any(-1) & (query_start[1:] > query_start[:-1])
    ratio = jnp.where(old > 0, old / jnp.where(old > 0, new, 1.0), 0.0)
    held = as_float32(_read(pages, jnp.where(grows, page[first], 0)))
    held = _rounded(held * ratio[:, None, :, None], pages.dtype)
    return pages.at[jnp.where(grows, page[first], pages.shape[0])].set(held, mode="drop")


def _read(array: jax.Array, places: jax.Array) -> jax.Array:
    """`array[places]`, read before the array is updated.

    XLA would rather read where the values are used, even in the update, and update a copy then.
    """
    return lax.optimization_barrier(array[places])


def _quantized(values: jax.Array, scales: jax.Array, dtype: DTypeLike) -> jax.Array:
    """values `[T, K, H]` in units of scales `[T, K]`; a scale is 0 if all it is for is 0."""
    units = jnp.where(scales > 0, scales, 1.0)
    return _rounded(values.astype(jnp.float32) / units[:, :, None], dtype)


@OP.register("reference", "cpu", "gpu")
def reference(operands: Operands) -> Written:
    """The plain twin: looks at all pages, whichever the tokens go into."""
    page_size = operands.k_pages.shape[1]
    page, offset = operands.slots // page_size, operands.slots % page_size

    def written(pages: jax.Array, scales: jax.Array, values: jax.Array) -> tuple[jax.Array, ...]:
        is_begun = jnp.zeros(pages.shape[0], bool).at[page].max(offset == 0)
        before = jnp.where(is_begun[:, None], 0.0, scales)
        most = jnp.zeros_like(scales).at[page].max(jnp.abs(values.astype(jnp.float32)).max(-1))
        now = _grown(most, before, pages.dtype)
        is_grown = (before > 0) & (now > before)
        ratio = jnp.where(is_grown, before / jnp.where(is_grown, now, 1.0), 1.0)
        held = _rounded(as_float32(pages) * ratio[:, None, :, None], pages.dtype)
        pages = jnp.where(is_grown[:, None, :, None], held, pages)
        new = _quantized(values, now[page], pages.dtype)
        return pages.at[page, offset].set(new), now

    k_pages, k_scales = written(operands.k_pages, operands.k_scales, operands.k)
    v_pages, v_scales = written(operands.v_pages, operands.v_scales, operands.v)
    return k_pages, v_pages, k_scales, v_scales
