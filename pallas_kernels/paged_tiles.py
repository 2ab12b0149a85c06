"""What the attention kernels for NVIDIA GPUs share: tiles of the paged cache, and the softmax.

Every array is passed whole (`pl.ANY`) and indexed in the kernel, so the cache keeps its layout and
is never copied. A tile of it is `[BLOCK_S, block_h]`: consecutive tokens of a row, one kv head.

    token s ──► page_table[row, s // page_size] ──► k_pages[page, s % page_size, head, :]
                (one gather of BLOCK_S page ids)    (16 bytes a thread: heads are contiguous)

Triton's arrays have sizes that are powers of two: a head of 80 is read as 128 columns of which 48
are masked and cost no memory traffic. Scores are in base 2: its exponential is one instruction.
Products of float32 ask for the highest precision: Triton's default rounds their inputs to 10 bits.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike

from pallas_kernels.registry import Check, Target, refuse

MASKED = -1e30  # finite: the difference of two masked scores is 0, not NaN
LOG2_E = math.log2(math.e)
MAX_GROUP = 64
FLOAT_CACHES = (jnp.bfloat16, jnp.float16, jnp.float32)
QUANTIZED_CACHES = (jnp.int8, jnp.float8_e4m3fn)

Ref = Any  # what a kernel gets for an array; Pallas exports no type for it


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


class Operands(NamedTuple):
    """Arrays of a call, or refs to them in the kernel; paged_attention documents them."""

    q: Ref
    k_pages: Ref
    v_pages: Ref
    page_table: Ref
    query_start: Ref
    context_lens: Ref
    sinks: Ref | None
    k_scales: Ref | None
    v_scales: Ref | None

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.q.shape[1] // self.k_pages.shape[2]

    @property
    def block_h(self) -> int:
        return max(16, power_of_two(self.q.shape[2]))

    @property
    def is_quantized(self) -> bool:
        return self.k_pages.dtype in QUANTIZED_CACHES

    @property
    def compute_dtype(self) -> Any:
        """Format of the products' inputs; a quantized cache is converted to the queries' format."""
        return self.q.dtype if self.is_quantized else self.k_pages.dtype

    @property
    def head_bytes(self) -> int:
        """Of a padded head in the compute dtype: what tiles' sizes go by."""
        return self.block_h * jnp.dtype(self.compute_dtype).itemsize

    def columns(self) -> tuple[jax.Array, jax.Array]:
        """Column numbers `[1, block_h]`, and which of them a head has."""
        columns = lax.broadcasted_iota(jnp.int32, (1, self.block_h), 1)
        return columns, columns < self.q.shape[2]


class Scores(NamedTuple):
    """How products of queries and keys become scores; all static."""

    scale: float
    window: int | None
    soft_cap: float | None

    def of(self, products: jax.Array) -> jax.Array:
        """Scores in base 2."""
        if self.soft_cap is None:
            return products * (self.scale * LOG2_E)
        capped = jnp.tanh(products * (self.scale / self.soft_cap))
        return capped * (self.soft_cap * LOG2_E)


class Softmax(NamedTuple):
    """A softmax-weighted sum in progress (https://arxiv.org/abs/1805.02867), float32, base 2.

    Attributes:
        maximum: `[M]`, largest score so far.
        total: `[M]`, sum of 2 ** (score - maximum).
        weighted: `[M, block_h]`, sum of 2 ** (score - maximum) * value.
    """

    maximum: jax.Array
    total: jax.Array
    weighted: jax.Array

    @staticmethod
    def start(sink: jax.Array | None, num_queries: int, block_h: int) -> Softmax:
        """sink `[M]`: a first score, in base e, that has no value."""
        weighted = jnp.zeros((num_queries, block_h), jnp.float32)
        if sink is None:
            maximum = jnp.full((num_queries,), MASKED, jnp.float32)
            return Softmax(maximum, jnp.zeros_like(maximum), weighted)
        maximum = sink * LOG2_E
        return Softmax(maximum, jnp.where(maximum > MASKED, 1.0, 0.0), weighted)

    def add(self, scores: jax.Array, values: jax.Array, v_scales: jax.Array | None) -> Softmax:
        """Takes in scores `[M, BLOCK_S]`, values `[BLOCK_S, block_h]` and their scales."""
        maximum = jnp.maximum(self.maximum, scores.max(axis=1))
        keep = jnp.exp2(self.maximum - maximum)
        weights = jnp.exp2(scores - maximum[:, None])
        total = self.total * keep + weights.sum(axis=1)
        if v_scales is not None:
            weights = weights * v_scales[None, :]
        product = plgpu.dot(weights.astype(values.dtype), values, precision=lax.Precision.HIGHEST)
        return Softmax(maximum, total, self.weighted * keep[:, None] + product)

    def result(self) -> jax.Array:
        """`[M, block_h]`; a query that attended to nothing is 0."""
        return self.weighted / jnp.maximum(self.total, 1e-30)[:, None]

    def log_total(self) -> jax.Array:
        """`[M]`, base-2 logarithm of the sum of all 2 ** score; MASKED or less for nothing."""
        return self.maximum + jnp.log2(jnp.maximum(self.total, 1e-30))


class CacheTile(NamedTuple):
    """Consecutive tokens of a row, one kv head; tokens outside of the range are 0.

    Attributes:
        tokens: `[BLOCK_S]`, their places in the context.
        k: `[BLOCK_S, block_h]` in the compute dtype.
        v: Like k.
        k_scales: `[BLOCK_S]` float32, None for a cache without.
        v_scales: Like k_scales.
    """

    tokens: jax.Array
    k: jax.Array
    v: jax.Array
    k_scales: jax.Array | None
    v_scales: jax.Array | None

    @staticmethod
    def read(
        operands: Operands,
        where: tuple[jax.Array, jax.Array],
        tokens: jax.Array,
        is_live: jax.Array,
    ) -> CacheTile:
        """Reads tokens `[BLOCK_S]` of `where`, a row and a kv head, as far as they are live.

        Masking the loads, not only the scores, keeps what another row left in a page out of the
        products: a weight of 0 times NaN is NaN.
        """
        row, head = where
        page_size = operands.k_pages.shape[1]
        pages = plgpu.load(
            operands.page_table.at[row, lax.div(tokens, page_size)], mask=is_live, other=0
        )
        columns, in_head = operands.columns()
        places = pages[:, None], lax.rem(tokens, page_size)[:, None], head, columns
        mask = is_live[:, None] & in_head

        def values(ref: Ref) -> jax.Array:
            tile = plgpu.load(ref.at[places], mask=mask, other=jnp.zeros((), ref.dtype))
            return tile.astype(operands.compute_dtype)

        def scales(ref: Ref | None) -> jax.Array | None:
            return None if ref is None else plgpu.load(ref.at[pages, head], mask=is_live, other=0.0)

        return CacheTile(
            tokens,
            values(operands.k_pages),
            values(operands.v_pages),
            scales(operands.k_scales),
            scales(operands.v_scales),
        )

    def products(self, q: jax.Array) -> jax.Array:
        """q `[M, block_h]` times keys: float32 `[M, BLOCK_S]`."""
        products = plgpu.dot(q, self.k, trans_b=True, precision=lax.Precision.HIGHEST)
        return products if self.k_scales is None else products * self.k_scales[None, :]


def check_supported(target: Target, q: jax.Array, k_pages: jax.Array, v_pages: jax.Array) -> None:
    """What both attention kernels ask of their arguments.

    Raises:
        UnsupportedError: They do not meet it; names the value and what would do.
    """
    num_heads, head_dim = q.shape[1:]
    num_kv_heads = k_pages.shape[2]
    formats = [jnp.dtype(d).name for d in (*FLOAT_CACHES, *QUANTIZED_CACHES)]
    refuse(
        "xla",
        (
            target.compute_capability >= 80,
            f"compute capability {target.compute_capability}",
            "80 and later",
        ),
        (
            16 <= head_dim <= 256 and head_dim % 8 == 0,
            f"head_dim {head_dim}",
            "multiples of 8 from 16 to 256",
        ),
        (
            num_heads % num_kv_heads == 0 and num_heads // num_kv_heads <= MAX_GROUP,
            f"{num_heads} heads on {num_kv_heads} kv heads",
            f"a whole number of heads per kv head, up to {MAX_GROUP}",
        ),
        (
            q.dtype in FLOAT_CACHES,
            f"q of {q.dtype}",
            "bfloat16, float16 and float32",
        ),
        (
            k_pages.dtype == v_pages.dtype and k_pages.dtype.name in formats,
            f"a cache of {k_pages.dtype} keys and {v_pages.dtype} values",
            f"keys and values of one of {', '.join(formats)}",
        ),
        float8_check(target, k_pages),
        size_check(k_pages),
    )


def float8_check(target: Target, pages: jax.Array) -> Check:
    """Compiled for less, conversions of float8_e4m3fn end the process."""
    return (
        pages.dtype != jnp.float8_e4m3fn or target.compute_capability >= 89,
        f"a float8_e4m3fn cache on compute capability {target.compute_capability}",
        "float8_e4m3fn from 89 on; use an int8 cache",
    )


def is_addressable(elements: int, dtype: DTypeLike) -> bool:
    """Pallas indexes arrays of up to 4 GiB with signed 32-bit numbers of elements."""
    return elements <= 2**31 or elements * jnp.dtype(dtype).itemsize > 2**32


def size_check(pages: jax.Array) -> Check:
    """Whether the pages can be addressed."""
    elements = pages.size
    return (
        is_addressable(elements, pages.dtype),
        f"a {pages.dtype} cache of {elements} elements",
        f"up to {2**31} elements, or more than {2**32}; change the number of pages",
    )
