"""Products of few rows of x with one or several weights, with what stands before and after them.

    z   = x, or x / rms(x) * norm                   the norm before q, k and v, and before the MLP
    y_j = z @ weights[j].T + biases[j]              several weights: q, k and v in one launch
    y   = act(z @ gate.T + b) * (z @ up.T + b)      gated: the first half of an MLP
    y   = residual + x @ weight.T + bias            the products that end attention and MLP

A decode step reads its weights and little else. XLA splits the inputs of such a product over
programs, writes their partial sums and adds them up in a second kernel; here a program owns its
outputs and loops over all inputs, so nothing but the result is written:

    outputs           q_proj                k_proj       v_proj         grid (tiles of all weights,
    tiles     │ 0 │ 1 │ 2 │ ... │ 127 │ 128 │ ... │ 159 │ 160 │ ... │         T / BLOCK_T)
                        │
                        └► x tile [BLOCK_T, BLOCK_K] ─┐
                           w tile [BLOCK_N, BLOCK_K] ─┴► tensor cores, float32 ─► y [T, BLOCK_N]
                                    NUM_STAGES tiles are under way at once

A gated program keeps two sums, of the same outputs of gate and up. The norm is a small launch of
its own before.

Quantized weights (pallas_kernels.quantized) are read as they are and converted to x's format, tile
by tile. A scale per output multiplies the sum at the end; one per group of inputs multiplies the
product of a tile, which is then one group; the two nibbles of an int4 tile are two products, with
two tiles of x. For more rows than MAX_ROWS arithmetic counts as well, and XLA's own products are
used of plain weights; of quantized ones it would write a converted copy of each in every step.

Every program reads all of x, through the L2 cache. At 64 rows that is twice the weights' bytes with
32 outputs a program, so WIDE programs have 64 where shared memory and registers allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial, reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike

from pallas_kernels import quantized
from pallas_kernels.paged_tiles import Ref, has_few_registers, power_of_two, shared_bytes
from pallas_kernels.quantized import CONTRACT_LAST, Quantized
from pallas_kernels.registry import Check, Implementation, Op, Target, refuse

OP = Op("row_matmul")

MAX_ROWS = 64
ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}
WIDE = 64  # outputs of a program at most
_TILES_BYTES = 96 << 10
_FORMATS = (jnp.bfloat16, jnp.float16)
_GROUPS = (32, 64, 128)

Weight = jax.Array | Quantized
Weights = Sequence[Weight]
Biases = Sequence[jax.Array | None]


@dataclasses.dataclass(frozen=True)
class Around:
    """What a call does besides the product; all static.

    Attributes:
        gated: The activation (of ACTIVATIONS) that makes one result of two weights of one shape,
            gate and up: act(gate) * up.
        eps: Added to the mean of squares of the norm.
        out_dtype: Format of the results.
    """

    gated: str | None
    eps: float
    out_dtype: Any


class Operands(NamedTuple):
    """Arrays of a call, or refs to them in the kernel; row_matmul documents them."""

    x: Ref
    weights: Sequence[Ref | Quantized]
    biases: Sequence[Ref | None]
    norm: Ref | None
    residual: Ref | None


def row_matmul(
    x: jax.Array,
    weights: Weights,
    biases: Biases | None = None,
    *,
    norm: jax.Array | None = None,
    eps: float = 0.0,
    gated: str | None = None,
    residual: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
    tiling: Tiling | None = None,
    implementation: str | None = None,
) -> list[jax.Array]:
    """x, normalized if there is a norm, times the transpose of each weight.

    Args:
        x: `[T, in]`.
        weights: Each `[out_j, in]`, in one format, which x is taken in; or all quantized alike.
        biases: For each weight `[out_j]` or None; None for none at all.
        norm: `[in]`, weight of an RMS norm of x (https://arxiv.org/abs/1910.07467).
        eps: Of the norm.
        gated: See Around.
        residual: `[T, out]`, added to the result of a single weight.
        out_dtype: Format of the results; x's if None.
        tiling: Sizes of the `pallas` kernel's tiles, to measure them; chosen by shape if None.
        implementation: A name from the registry, or None for the platform's default; with a tiling
            it is `pallas`.

    Returns:
        `[T, out_j]` for each weight, summed in float32; for gated a list of one.

    Raises:
        ValueError: A tiling is given for an implementation that has none.
    """
    biases = (None,) * len(weights) if biases is None else tuple(biases)
    operands = Operands(x, tuple(weights), biases, norm, residual)
    around = Around(gated, eps, jnp.dtype(out_dtype or x.dtype))
    options: dict[str, Any] = {}
    if tiling is not None:
        if implementation not in (None, "pallas"):
            raise ValueError(
                f"{OP.name}: a tiling is of implementation pallas; {implementation} has none. Name "
                "only one of the two."
            )
        implementation, options = "pallas", {"tiling": tiling}
    return OP(operands, around, implementation=implementation, **options)  # type: ignore[return-value]


def _supports(
    target: Target, operands: Operands, around: Around, *, tiling: Tiling | None = None
) -> None:
    del tiling  # the compiler says if it takes too much shared memory
    x, weights = operands.x, operands.weights
    formats = {_format(w) for w in weights}
    refuse(
        "xla",
        (len(formats) == 1, f"weights of {', '.join(sorted(formats))}", "one format for all"),
        *_weight_checks(target, x, weights[0]),
        (x.shape[1] % 16 == 0, f"{x.shape[1]} inputs", "multiples of 16"),
        (
            around.gated is None or around.gated in ACTIVATIONS,
            f"activation {around.gated}",
            ", ".join(ACTIVATIONS),
        ),
        *[
            # Pallas indexes arrays of up to 4 GiB with signed 32-bit numbers of elements.
            (size <= 2**31, f"a weight of {size} elements", f"up to {2**31} elements")
            for size in [max(_stored(w).size for w in weights)]
        ],
    )


def _weight_checks(target: Target, x: jax.Array, weight: Weight) -> list[Check]:
    """What the format of a weight asks for."""
    capability = target.compute_capability
    if not isinstance(weight, Quantized):
        few = f"{x.shape[0]} rows"
        return [
            (capability >= 80, f"compute capability {capability}", "80 and later"),
            (weight.dtype in _FORMATS, f"weights of {weight.dtype}", "bfloat16 and float16"),
            (x.shape[0] <= MAX_ROWS, few, f"up to {MAX_ROWS} rows of plain weights"),
        ]
    is_fp8 = weight.dtype == jnp.float8_e4m3fn
    # Compiled for 8.0, Triton's conversion of fp8 ends the process.
    least = 89 if is_fp8 else 80
    is_known = is_fp8 or weight.dtype in (jnp.int8, jnp.uint8)
    return [
        (
            capability >= least,
            f"{weight.dtype} at compute capability {capability}",
            f"{least} and later",
        ),
        (x.dtype in _FORMATS, f"x of {x.dtype}", "bfloat16 and float16"),
        (
            is_known,
            f"a weight of {weight.dtype}",
            "int8, float8_e4m3fn, and int4 packed in uint8",
        ),
        (
            weight.is_per_output or weight.group in _GROUPS,
            f"group {weight.group}",
            "groups of 32, 64 and 128, and a scale per output without zeros",
        ),
    ]


def _format(weight: Weight) -> str:
    """Names what has to be the same for all weights of a call."""
    if not isinstance(weight, Quantized):
        return weight.dtype.name
    zeros = "" if weight.zeros is None else " with zeros"
    return f"{weight.dtype.name} in groups of {weight.group}{zeros}"


def _stored(weight: Weight) -> jax.Array:
    return weight.numbers if isinstance(weight, Quantized) else weight


def _computed_in(operands: Operands) -> Any:
    """The format of both sides of the product."""
    weight = operands.weights[0]
    return operands.x.dtype if isinstance(weight, Quantized) else weight.dtype


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static sizes of a call.

    Attributes:
        block_t: Rows of x of a program.
        block_n: Outputs of a program.
        block_k: Inputs read at once.
        num_stages: Tiles in flight.
        num_warps: Of a program.
    """

    block_t: int
    block_n: int
    block_k: int
    num_stages: int
    num_warps: int = 4

    def __str__(self) -> str:
        """What measurements call it: n64/k128/s4/w8."""
        return f"n{self.block_n}/k{self.block_k}/s{self.num_stages}/w{self.num_warps}"

    @staticmethod
    def of(operands: Operands, around: Around, *, widest: int = WIDE) -> Tiling:
        """Some 48 KB of weights under way in a program, which is what a multiprocessor needs.

        32 outputs a program give 4,096 outputs 128 programs, as many as a GPU has multiprocessors;
        weights with fewer outputs get 16. Tiles in flight fit the least shared memory, sm89's.

        Args:
            operands: The arrays.
            around: What is done besides.
            widest: 32 for none of the wide tiles, which above 32 rows are what is read least with.
        """
        results = operands.weights[:1] if around.gated else operands.weights
        num_rows, num_outputs = operands.x.shape[0], sum(w.shape[0] for w in results)
        block_t = min(64, max(16, power_of_two(num_rows)))
        if widest >= WIDE and 32 < num_rows <= MAX_ROWS and num_outputs >= 4096:
            wide = _wide(operands, block_t)
            if wide is not None:
                return wide
        block_n = 32 if num_outputs >= 2048 else 16
        if num_rows > MAX_ROWS:
            block_n = WIDE
        num_weights = len(operands.weights) if around.gated else 1
        block_k, num_stages = _inputs_at_once(operands, block_t, block_n, num_weights)
        x_bytes = block_t * operands.x.dtype.itemsize
        stored = _stored(operands.weights[0])
        w_bytes = num_weights * block_n * stored.dtype.itemsize
        w_bytes = w_bytes * stored.shape[1] // operands.x.shape[1]
        tile_bytes = block_k * (x_bytes + w_bytes)
        most = max(1, _TILES_BYTES // tile_bytes)
        # ptxas gives four warps 40 registers for the narrowest and longest tiles, a few too few.
        num_warps = 8 if block_n == 16 and block_k == 256 else 4
        return Tiling(block_t, block_n, block_k, min(num_stages, most), num_warps)


def _wide(operands: Operands, block_t: int) -> Tiling | None:
    """64 outputs a program, or None where they spill: two products of each int4 weight on mma.sync.

    A second weight and the conversion of quantized numbers take registers, of which eight warps
    have twice as many.
    """
    weight = operands.weights[0]
    is_quantized = isinstance(weight, Quantized)
    if is_quantized and weight.is_int4 and has_few_registers():
        return None
    block_k = weight.group if is_quantized and not weight.is_per_output else 128
    num_stages = 4 if shared_bytes() >= 163 << 10 else 3
    is_plain = not is_quantized and len(operands.weights) == 1
    return Tiling(block_t, WIDE, block_k, num_stages, 4 if is_plain else 8)


TILINGS_AT_64_ROWS = (
    Tiling(64, 32, 128, 3, 4),
    Tiling(64, 32, 128, 4, 4),
    Tiling(64, 64, 128, 3, 8),
    Tiling(64, 64, 128, 4, 4),
    Tiling(64, 64, 128, 4, 8),
    Tiling(64, 128, 64, 5, 8),
)
"""What to measure beside each other for plain weights: first the two without WIDE. Some take more
shared memory than some GPUs have, and do not compile there."""


def _inputs_at_once(
    operands: Operands, block_t: int, block_n: int, num_weights: int
) -> tuple[int, int]:
    """Inputs of a tile, and how many tiles are wanted in flight."""
    weight, num_inputs = operands.weights[0], operands.x.shape[1]
    is_few = block_t <= 32
    if isinstance(weight, Quantized):
        if not weight.is_per_output:
            return weight.group, (8 if weight.is_int4 else 4) if is_few else 3
        return 256 if is_few and num_weights == 1 else 128 if block_n <= 32 else 64, 3
    block_k = 256 if is_few and num_weights == 1 else 128
    return next((n for n in (256, 128, 64) if n <= block_k and num_inputs % n == 0), 64), 4


@OP.register("pallas", "gpu", supports=_supports)
def pallas(
    operands: Operands,
    around: Around,
    *,
    tiling: Tiling | None = None,
    interpret: bool = False,
) -> list[jax.Array]:
    """The kernel; interpret runs it on the CPU, slowly: for tests."""
    tiling = tiling or Tiling.of(operands, around)
    if operands.norm is not None:
        operands = operands._replace(x=_normed(operands, around.eps, interpret), norm=None)
    results = operands.weights[:1] if around.gated else operands.weights
    num_rows = operands.x.shape[0]
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        partial(_kernel, tiling=tiling, around=around),
        out_shape=[jax.ShapeDtypeStruct((num_rows, w.shape[0]), around.out_dtype) for w in results],
        grid=(
            sum(pl.cdiv(w.shape[0], tiling.block_n) for w in results),
            pl.cdiv(num_rows, tiling.block_t),
        ),
        in_specs=[jax.tree.map(lambda _: anywhere, operands)],
        out_specs=[anywhere for _ in results],
        compiler_params=plgpu.CompilerParams(
            num_warps=tiling.num_warps, num_stages=tiling.num_stages
        ),
        interpret=interpret,
        name="row_matmul",
    )
    return list(call(operands))


def _normed(operands: Operands, eps: float, interpret: bool) -> jax.Array:
    """x over the root of its mean square, times the norm's weight, in the format of the product.

    A launch of its own, of a program for each row. In the loop of the product every program would
    load the norm's weight, widen x and lay it out anew: on an H100 q, k and v of Llama-3.1-8B then
    took 56 us in place of 21 (docs/lab).
    """
    num_rows, num_inputs = operands.x.shape
    anywhere = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        partial(_norm_kernel, eps=eps),
        out_shape=jax.ShapeDtypeStruct((num_rows, num_inputs), _computed_in(operands)),
        grid=(num_rows,),
        in_specs=[anywhere, anywhere],
        out_specs=anywhere,
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
        name="rms_norm",
    )
    return call(operands.x, operands.norm)


def _norm_kernel(x_ref: Ref, weight_ref: Ref, out_ref: Ref, *, eps: float) -> None:
    """One row."""
    row, num_inputs = pl.program_id(0), x_ref.shape[1]
    columns = lax.iota(jnp.int32, power_of_two(num_inputs))
    are_there = columns < num_inputs
    x, weight = (
        plgpu.load(ref, mask=are_there, other=0.0).astype(jnp.float32)
        for ref in (x_ref.at[row, columns], weight_ref.at[columns])
    )
    y = x * lax.rsqrt((x * x).sum(axis=0) / num_inputs + eps) * weight
    plgpu.store(out_ref.at[row, columns], y.astype(out_ref.dtype), mask=are_there)


NARROW = Implementation(
    "pallas without wide tiles",
    lambda *args, **options: pallas(*args, tiling=Tiling.of(*args, widest=32), **options),  # type: ignore[arg-type]
    ("gpu",),
    _supports,
)
"""For registry.using: whole steps as they were before WIDE, to measure them beside the others."""


def _kernel(operands: Operands, *out_refs: Ref, tiling: Tiling, around: Around) -> None:
    """One tile of outputs: of one of the weights, or of gate and up."""
    index = pl.program_id(0)
    rows = _Places.of(pl.program_id(1), tiling.block_t, operands.x.shape[0])
    if len(out_refs) == 1:
        _tile(operands, out_refs[0], (rows, index), tiling, around)
        return
    first = 0
    for j, out_ref in enumerate(out_refs):
        end = first + pl.cdiv(out_ref.shape[1], tiling.block_n)
        one = operands._replace(weights=[operands.weights[j]], biases=[operands.biases[j]])
        is_here = (index >= first) & (index < end)
        pl.when(is_here)(partial(_tile, one, out_ref, (rows, index - first), tiling, around))
        first = end


def _tile(
    operands: Operands,
    out_ref: Ref,
    where: tuple[_Places, jax.Array],
    tiling: Tiling,
    around: Around,
) -> None:
    """Rows, and tile of outputs, of a weight or of gate and up, from all inputs."""
    rows, index = where
    outputs = _Places.of(index, tiling.block_n, out_ref.shape[1])
    sums = _sums(operands, rows, outputs, tiling)
    for j, weight in enumerate(operands.weights):
        if isinstance(weight, Quantized) and weight.is_per_output:
            sums[j] *= _scales(weight, outputs, 0)
    for j, bias in enumerate(operands.biases):
        if bias is not None:
            added = plgpu.load(bias.at[outputs.at], mask=outputs.are_there, other=0.0)
            sums[j] += added.astype(jnp.float32)[None, :]
    result = sums[0] if around.gated is None else ACTIVATIONS[around.gated](sums[0]) * sums[1]
    place = rows.at[:, None], outputs.at[None, :]
    own = rows.are_there[:, None] & outputs.are_there[None, :]
    if operands.residual is not None:
        residual = plgpu.load(operands.residual.at[place], mask=own, other=0.0)
        result += residual.astype(jnp.float32)
    plgpu.store(out_ref.at[place], result.astype(out_ref.dtype), mask=own)


class _Places(NamedTuple):
    """Rows of x or of a weight that a program works on, and which of them there are."""

    at: jax.Array
    are_there: jax.Array

    @staticmethod
    def of(index: jax.Array, block: int, count: int) -> _Places:
        at = index * block + lax.iota(jnp.int32, block)
        return _Places(at, at < count)


def _sums(operands: Operands, rows: _Places, outputs: _Places, tiling: Tiling) -> list[jax.Array]:
    """Of x and each weight, `[T, N]`."""
    num_inputs = operands.x.shape[1]
    # Both nibbles of a tile of int4 are inputs, half a tile apart.
    num_parts = 2 if _is_int4(operands.weights[0]) else 1
    width = tiling.block_k // num_parts
    dtype = _computed_in(operands)

    def add_inputs(i: jax.Array, sums: tuple) -> tuple:
        tiles = [
            _Inputs.of(i * tiling.block_k + part * width, width, num_inputs)
            for part in range(num_parts)
        ]
        xs = [tile.read(operands.x, rows).astype(dtype) for tile in tiles]
        products = []
        for weight in operands.weights:
            numbers = _numbers(weight, outputs, i, tiles, dtype)
            dots = [plgpu.dot(x, n, trans_b=True) for x, n in zip(xs, numbers, strict=True)]
            product = reduce(add, dots)
            if isinstance(weight, Quantized) and not weight.is_per_output:
                product *= _scales(weight, outputs, i)
            products.append(product)
        return tuple(s + p for s, p in zip(sums, products, strict=True))

    zeros = jnp.zeros((tiling.block_t, tiling.block_n), jnp.float32)
    start = (zeros,) * len(operands.weights)
    return list(lax.fori_loop(0, pl.cdiv(num_inputs, tiling.block_k), add_inputs, start))


class _Inputs(NamedTuple):
    """A tile of inputs; `are_there` is True where all tiles are whole."""

    at: jax.Array
    are_there: Any

    @staticmethod
    def of(first: jax.Array, width: int, num_inputs: int) -> _Inputs:
        at = first + lax.broadcasted_iota(jnp.int32, (1, width), 1)
        return _Inputs(at, True if num_inputs % width == 0 else at < num_inputs)

    def read(self, ref: Ref, places: _Places) -> jax.Array:
        """Some rows of a matrix."""
        mask = places.are_there[:, None] & self.are_there
        other = 0.0 if jnp.issubdtype(ref.dtype, jnp.floating) else 0  # Triton casts no int to fp8
        return plgpu.load(ref.at[places.at[:, None], self.at], mask=mask, other=other)


def _numbers(
    weight: Ref | Quantized, outputs: _Places, i: jax.Array, tiles: list[_Inputs], dtype: Any
) -> list[jax.Array]:
    """A weight's numbers for the tiles of step i, less what means 0, each `[N, width]`."""
    if not isinstance(weight, Quantized):
        return [tile.read(weight, outputs) for tile in tiles]
    if weight.is_int4:
        width = tiles[0].at.shape[1]
        packed = _Inputs.of(i * width, width, weight.numbers.shape[1]).read(weight.numbers, outputs)
        packed = packed.astype(jnp.int32)
        numbers = [packed & 15, packed >> 4]
    else:
        numbers = [tile.read(weight.numbers, outputs) for tile in tiles]
    if weight.zeros is not None:
        zeros = plgpu.load(weight.zeros.at[outputs.at, i], mask=outputs.are_there, other=0)
        # Whole numbers up to 256 in size: exact in bfloat16.
        numbers = [n.astype(jnp.int32) - zeros.astype(jnp.int32)[:, None] for n in numbers]
    elif weight.is_int4:
        numbers = [n - 8 for n in numbers]
    return [n.astype(dtype) for n in numbers]


def _scales(weight: Quantized, outputs: _Places, i: jax.Array | int) -> jax.Array:
    """float32 `[1, N]`, of group i."""
    return plgpu.load(weight.scales.at[outputs.at, i], mask=outputs.are_there, other=0.0)[None, :]


def _is_int4(weight: Ref | Quantized) -> bool:
    return isinstance(weight, Quantized) and weight.is_int4


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x `[..., size]` over the root of its mean square, times weight `[size]`; x's dtype.

    Paper: https://arxiv.org/abs/1910.07467
    """
    y = x.astype(jnp.float32)
    y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    weight = jnp.expand_dims(weight.astype(jnp.float32), range(x.ndim - 1))
    return (y * weight).astype(x.dtype)


@OP.register("xla", "cpu", "gpu")
def xla(operands: Operands, around: Around) -> list[jax.Array]:
    """A product for each weight.

    Each gives float32: not only for accuracy, a bf16 result is 10 times slower on the CPU.
    """
    x = operands.x
    if operands.norm is not None:
        x = rms_norm(x, operands.norm, around.eps)
    results = []
    for weight, bias in zip(operands.weights, operands.biases, strict=True):
        y = _product(x, weight)
        y = y if bias is None else y + bias.astype(jnp.float32)[None, :]
        results.append(y.astype(around.out_dtype))
    if around.gated is not None:
        results = [ACTIVATIONS[around.gated](results[0]) * results[1]]
    if operands.residual is not None:
        results = [operands.residual + results[0]]
    return results


def _product(x: jax.Array, weight: Weight) -> jax.Array:
    if isinstance(weight, Quantized):
        return quantized.product(x, weight)
    x = x.astype(weight.dtype)
    return lax.dot_general(x, weight, CONTRACT_LAST, preferred_element_type=jnp.float32)


@OP.register("reference", "cpu", "gpu")
def reference(operands: Operands, around: Around) -> list[jax.Array]:
    """The plain twin: everything in float32."""
    x = operands.x.astype(jnp.float32)
    if operands.norm is not None:
        x = rms_norm(x, operands.norm, around.eps)
    biases = [0.0 if b is None else b.astype(jnp.float32)[None, :] for b in operands.biases]
    ys = [
        jnp.einsum("ti,oi->to", x, _in_float32(w)) + b
        for w, b in zip(operands.weights, biases, strict=True)
    ]
    if around.gated is not None:
        ys = [ACTIVATIONS[around.gated](ys[0]) * ys[1]]
    if operands.residual is not None:
        ys = [operands.residual.astype(jnp.float32) + ys[0]]
    return [y.astype(around.out_dtype) for y in ys]


def _in_float32(weight: Weight) -> jax.Array:
    is_quantized = isinstance(weight, Quantized)
    return quantized.dequantized(weight) if is_quantized else weight.astype(jnp.float32)
