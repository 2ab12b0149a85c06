"""What the attention kernels for NVIDIA GPUs share: tiles of the paged cache, and the softmax.

Every array is passed whole (`pl.ANY`) and indexed in the kernel, so the cache keeps its layout and
is never copied. A tile of it is `[BLOCK_S, block_h]`: consecutive tokens of a row, one kv head.

    token s ──► page_table[row, s // page_size] ──► k_pages[page, s % page_size, head, :]
                (one page id a tile, or a gather    (16 bytes a thread: heads are contiguous)
                of BLOCK_S if pages are smaller)

A loop over tiles carries the page ids of its next tile. Triton starts the copies of later tiles
ahead of time only if their addresses wait for no load of the same iteration:

    ids of tile i + 1     load ─┐     load ─┐     load      a carried id is there when its tile
    k, v of tile i              └► copy     └► copy         starts, so copies of tiles i + 1, ...
    products of tile i - 1         dot         dot          are under way beside the products of i

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

from pallas_kernels.registry import Check, Target, current_target, refuse

MASKED = -1e30  # finite: the difference of two masked scores is 0, not NaN
LOG2_E = math.log2(math.e)
MAX_GROUP = 64
FLOAT_CACHES = (jnp.bfloat16, jnp.float16, jnp.float32)
QUANTIZED_CACHES = (jnp.int8, jnp.float8_e4m3fn)

_SHARED_KB = {80: 163, 90: 227, 100: 227, 103: 227}  # that a program can have, by capability

Ref = Any  # what a kernel gets for an array; Pallas exports no type for it


def power_of_two(n: int) -> int:
    """The least power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def shared_bytes() -> int:
    """Shared memory that a program can have on the GPU that is traced for."""
    return _SHARED_KB.get(current_target().compute_capability, 99) << 10


def has_few_registers() -> bool:
    """Whether its tensor cores take both operands and their sums from registers (mma.sync).

    Those of sm90 and sm100 (wgmma, tcgen05) read shared memory, which leaves room for larger tiles.
    """
    return not 90 <= current_target().compute_capability < 120


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


def fitting(
    operands: Operands, block_m: int, block_s: int, *, most_stages: int = 3
) -> tuple[int, int]:
    """Tokens of a tile and num_stages with which a program's shared memory suffices.

    Three stages are two tiles in shared memory, one of which is loaded while the other one is
    computed on; tiles are halved for that, down to 16 tokens. More stages are more tiles.

    Args:
        operands: The arrays.
        block_m: Query rows of a program.
        block_s: Tokens of context that are wanted in a tile.
        most_stages: As many as are of use.
    """
    itemsize = jnp.dtype(operands.compute_dtype).itemsize

    def size(block_s: int, num_stages: int) -> int:
        pages = operands.block_h * operands.k_pages.dtype.itemsize
        tiles = (num_stages - 1) * 2 * block_s * pages
        return block_m * (operands.head_bytes + block_s * itemsize) + tiles

    while size(block_s, 3) > shared_bytes() and block_s > 16:
        block_s //= 2
    counts = range(most_stages, 2, -1)
    return block_s, next((n for n in counts if size(block_s, n) <= shared_bytes()), 2)


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


class TilePages(NamedTuple):
    """Page ids of the tiles of a row, which a loop over tiles carries.

    Attributes:
        table: The page table, a ref.
        row: Whose pages.
        block_s: Tokens of a tile.
        page_size: Tokens of a page.
    """

    table: Ref
    row: jax.Array
    block_s: int
    page_size: int

    @staticmethod
    def of(operands: Operands, row: jax.Array, block_s: int) -> TilePages:
        return TilePages(operands.page_table, row, block_s, operands.k_pages.shape[1])

    def tokens(self, tile: jax.Array) -> jax.Array:
        """`[BLOCK_S]`, places in the context."""
        return tile * self.block_s + lax.iota(jnp.int32, self.block_s)

    def ids(self, tile: jax.Array) -> jax.Array:
        """int32: one where a page holds whole tiles, else one a token `[BLOCK_S]`.

        Behind the table it is some page of the row, which nobody reads.
        """
        in_one_page = self.page_size % self.block_s == 0
        tokens = tile * self.block_s if in_one_page else self.tokens(tile)
        last = self.table.shape[1] - 1
        return plgpu.load(
            self.table.at[self.row, jnp.minimum(lax.div(tokens, self.page_size), last)]
        )

    def offsets(self, tile: jax.Array) -> jax.Array:
        """`[BLOCK_S]`, places in their pages."""
        if self.page_size % self.block_s:
            return lax.rem(self.tokens(tile), self.page_size)
        return lax.rem(tile * self.block_s, self.page_size) + lax.iota(jnp.int32, self.block_s)


class CacheTile(NamedTuple):
    """Consecutive tokens of a row, one kv head; tokens outside of the range are 0.

    Attributes:
        k: `[BLOCK_S, block_h]` in the compute dtype.
        v: Like k.
        k_scales: float32, one or `[BLOCK_S]` as there are pages; None for a cache without.
        v_scales: Like k_scales.
    """

    k: jax.Array
    v: jax.Array
    k_scales: jax.Array | None
    v_scales: jax.Array | None

    @staticmethod
    def read(
        operands: Operands,
        head: jax.Array,
        pages: jax.Array,
        offsets: jax.Array,
        is_live: jax.Array,
    ) -> CacheTile:
        """Reads tokens at offsets `[BLOCK_S]` of pages for a kv head, as far as they are live.

        Masking the loads, not only the scores, keeps what another row left in a page out of the
        products: a weight of 0 times NaN is NaN.
        """
        columns, in_head = operands.columns()
        page_of_token = pages[:, None] if pages.ndim else pages
        places = page_of_token, offsets[:, None], head, columns
        mask = is_live[:, None] & in_head

        def values(ref: Ref) -> jax.Array:
            tile = plgpu.load(ref.at[places], mask=mask, other=jnp.zeros((), ref.dtype))
            return tile.astype(operands.compute_dtype)

        def scales(ref: Ref | None) -> jax.Array | None:
            if ref is None:
                return None
            pages_scales = plgpu.load(ref.at[pages, head])
            return jnp.where(is_live, pages_scales, 0.0)

        return CacheTile(
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
