"""How matrices are kept: as they are, or as small numbers with scales.

A format is one class: `declare` says which parameters stand for a matrix `[out, in]`, `product`
multiplies with them, `rows` looks vectors up, `encode` makes them of a plain matrix. The model, the
check of a checkpoint, sharding, conversion and memory plans all derive from `declare`.

                weight                  weight_scale, float32     further
    Plain       [out, in]
    Int8        int8 [out, in]          [out, in / group]         weight_zero_point, input_order
      rotated   int8 [out, in]          [out, 1]
    Int4        uint8 [out, in / 2]     [out, in / group]         weight_zero_point, input_order
    Fp8         float8_e4m3fn [out, in] [out, in / group]

A group of all inputs is a scale per output. The CPU keeps int8 rotated: its products round rows of
x to int8 too, and a number far larger than the rest of its row leaves these few levels. So weights
and x are both multiplied with an orthogonal matrix (Hadamard's, in blocks of inputs), which spreads
it over a block and cancels out in the product, x R (w R)^T = x w^T. (QuaRot, arXiv 2404.00456,
rotates activations in this way.) Every array's axes are those of the matrix, so scales lie with the
outputs and inputs that they belong to.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, TypeVar

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import nnx
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from pallas_kernels.quantized import CONTRACT_LAST, Quantized
from pallas_kernels.sharded import MeshAxes, sharded_quantized_matmul, sharded_row_matmul
from rtpjax.errors import CheckpointError

WEIGHT, SCALE, ZERO_POINT = "weight", "weight_scale", "weight_zero_point"
INPUT_ORDER = "input_order"

Array = TypeVar("Array", jax.Array, np.ndarray)
Placement = tuple[MeshAxes, PartitionSpec] | None

_RANDOM_SIZE = 0.02  # standard deviation of random weights, in whatever format they are kept
MATRIX_INIT = nnx.initializers.normal(_RANDOM_SIZE)
_MOST_ROTATED = 64
_LEVELS_OF_LARGEST = np.arange(-11.0, -6.5, 0.5)
_TINY = np.finfo(np.float32).tiny
# One function for each value: a parameter's `init` is part of what makes two models equal.
_constant = functools.cache(nnx.initializers.constant)


def param(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: DTypeLike,
    *,
    rngs: nnx.Rngs,
    init: nnx.Initializer = MATRIX_INIT,
    offset: float = 0.0,
) -> nnx.Param[jax.Array]:
    """Declares a parameter.

    Args:
        shape: Its shape.
        axes: A logical axis for each dimension; rtpjax.sharding says where each goes.
        dtype: Its format.
        rngs: Where its initial values come from.
        init: How they are drawn; random weights (rtpjax.dummy_checkpoint) are drawn so, too.
        offset: What a checkpoint's values lack.
    """
    assert len(shape) == len(axes)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes, init=init, offset=offset)


@dataclasses.dataclass(frozen=True)
class WeightFormat:
    """A way to keep a matrix `[out, in]`; see the module."""

    bits: ClassVar[int]

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parameters."""
        raise NotImplementedError

    def declare(
        self, shape: tuple[int, int], axes: tuple[str, str], dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> dict[str, nnx.Param[jax.Array]]:
        """The parameters by name; dtype is what the matrix has where it is not quantized."""
        raise NotImplementedError

    @property
    def is_product(self) -> bool:
        """Whether x is multiplied with the operand, and nothing else is done."""
        return True

    def operand(self, arrays: Mapping[str, jax.Array]) -> jax.Array | Quantized:
        """The parameters as kernels take them."""
        raise NotImplementedError

    def product(
        self, x: jax.Array, arrays: Mapping[str, jax.Array], placement: Placement = None
    ) -> jax.Array:
        """x `[T, in]` times the transposed matrix: float32 `[T, out]`.

        placement: How the matrix is split over which devices; None if XLA is to split the product
            as it likes.
        """
        raise NotImplementedError

    def rows(self, indices: jax.Array, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """Some rows of the matrix, `[T]` -> float `[T, in]`."""
        raise NotImplementedError

    def encode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Quantizes a matrix, float32 `[out, in]`; whole groups of inputs."""
        raise NotImplementedError

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The matrix that the parameters stand for, float32 `[out, in]`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Plain(WeightFormat):
    """The matrix itself."""

    @property
    def parts(self) -> tuple[str, ...]:
        """See WeightFormat."""
        return (WEIGHT,)

    def declare(
        self, shape: tuple[int, int], axes: tuple[str, str], dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> dict[str, nnx.Param[jax.Array]]:
        """See WeightFormat."""
        return {WEIGHT: param(shape, axes, dtype, rngs=rngs)}

    def operand(self, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """See WeightFormat."""
        return arrays[WEIGHT]

    def product(
        self, x: jax.Array, arrays: Mapping[str, jax.Array], placement: Placement = None
    ) -> jax.Array:
        """Both are taken in the weight's format.

        The float32 result is not only for accuracy: on the CPU a bf16 one is about 10 times slower.
        """
        weight = arrays[WEIGHT]
        if placement is not None:
            mesh, spec = placement
            return sharded_row_matmul(mesh, [spec], x, [weight], [None], out_dtype=jnp.float32)[0]
        return lax.dot_general(
            x.astype(weight.dtype), weight, CONTRACT_LAST, preferred_element_type=jnp.float32
        )

    def rows(self, indices: jax.Array, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """See WeightFormat."""
        return jnp.take(arrays[WEIGHT], indices, axis=0, mode="clip")

    def encode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """See WeightFormat."""
        return {WEIGHT: values}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See WeightFormat."""
        return arrays[WEIGHT].astype(np.float32)


PLAIN = Plain()


@dataclasses.dataclass(frozen=True)
class _Scaled(WeightFormat):
    """What the quantized formats share.

    Attributes:
        group: Inputs that share a scale; None for all of them.
        has_zeros: Whether a group has a number of its own that means 0.
        has_order: Whether inputs are reordered, so that those of a group are neighbours (GPTQ's
            desc_act): column i of the stored matrix is of input input_order[i].
    """

    group: int | None = None
    has_zeros: bool = False
    has_order: bool = False

    dtype: ClassVar[DTypeLike]
    # Of the numbers that `random` draws, so that scales can make weights of _RANDOM_SIZE of them.
    random_size: ClassVar[float]
    zeros_dtype: ClassVar[DTypeLike] = jnp.uint8
    per_byte: ClassVar[int] = 1

    @property
    def parts(self) -> tuple[str, ...]:
        """See WeightFormat."""
        zeros, order = (ZERO_POINT,) * self.has_zeros, (INPUT_ORDER,) * self.has_order
        return (WEIGHT, SCALE, *zeros, *order)

    def declare(
        self, shape: tuple[int, int], axes: tuple[str, str], dtype: DTypeLike, *, rngs: nnx.Rngs
    ) -> dict[str, nnx.Param[jax.Array]]:
        """See WeightFormat."""
        out, num_inputs = shape
        scales = (out, self.num_groups(num_inputs))
        weight = (out, num_inputs // self.per_byte)
        params = {
            WEIGHT: param(weight, axes, self.dtype, rngs=rngs, init=self.random),
            SCALE: param(
                scales,
                axes,
                jnp.float32,
                rngs=rngs,
                init=_constant(_RANDOM_SIZE / self.random_size),
            ),
        }
        if self.has_zeros:
            zeros = _constant(self.zero)
            params[ZERO_POINT] = param(scales, axes, self.zeros_dtype, rngs=rngs, init=zeros)
        if self.has_order:
            # Any device may need any input of x, so all have the whole order.
            params[INPUT_ORDER] = param(
                (num_inputs,), ("embed",), jnp.int32, rngs=rngs, init=_in_order
            )
        return params

    @staticmethod
    def random(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """Stored numbers that mean weights around 0."""
        raise NotImplementedError

    @property
    def zero(self) -> int:
        """What means 0 where no zero points are kept."""
        return 0

    def num_groups(self, num_inputs: int) -> int:
        """Scales of one output.

        Raises:
            CheckpointError: Groups do not divide the inputs.
        """
        if num_inputs % (self.group or 1) or num_inputs % self.per_byte:
            raise CheckpointError(
                f"A matrix of {num_inputs} inputs cannot be cut into groups of {self.group}; "
                "quantize the model in groups that divide them, or per output."
            )
        return num_inputs // (self.group or num_inputs)

    @property
    def is_product(self) -> bool:
        """See WeightFormat."""
        return not self.has_order

    def operand(self, arrays: Mapping[str, jax.Array]) -> Quantized:
        """See WeightFormat."""
        return Quantized(arrays[WEIGHT], arrays[SCALE], arrays.get(ZERO_POINT))

    def product(
        self, x: jax.Array, arrays: Mapping[str, jax.Array], placement: Placement = None
    ) -> jax.Array:
        """See WeightFormat."""
        if self.has_order:
            x = jnp.take(x, arrays[INPUT_ORDER], axis=1)
        return sharded_quantized_matmul(placement, x, self.operand(arrays))

    def rows(self, indices: jax.Array, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """See WeightFormat; only for a scale per output, as embeddings have it."""
        assert self.parts == (WEIGHT, SCALE) and self.group is None
        weight, scale = (
            jnp.take(arrays[name], indices, axis=0, mode="clip") for name in (WEIGHT, SCALE)
        )
        return weight.astype(jnp.float32) * scale

    def encode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """See WeightFormat: each group is divided by its largest number."""
        assert not self.has_zeros and not self.has_order
        grouped = values.reshape(values.shape[0], self.num_groups(values.shape[1]), -1)
        scales = self._scales_of(grouped)
        stored = self.rounded(grouped / scales[:, :, None])
        return {WEIGHT: self.packed(stored).reshape(values.shape[0], -1), SCALE: scales}

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See WeightFormat."""
        scales = arrays[SCALE]
        grouped = self.unpacked(arrays[WEIGHT].reshape(*scales.shape, -1)).astype(np.float32)
        zeros = arrays[ZERO_POINT].astype(np.float32) if self.has_zeros else None
        grouped -= self.zero if zeros is None else zeros[:, :, None]
        values = (grouped * scales[:, :, None]).reshape(scales.shape[0], -1)
        if self.has_order:
            inverse = np.argsort(arrays[INPUT_ORDER])
            values = values[:, inverse]
        return values

    def rounded(self, quotients: np.ndarray) -> np.ndarray:
        """Quotients `[out, groups, group]` of a matrix and its scales, as they are stored."""
        raise NotImplementedError

    def packed(self, stored: np.ndarray) -> np.ndarray:
        """Stored numbers `[out, groups, group]` as bytes."""
        return stored

    def unpacked(self, stored: np.ndarray) -> np.ndarray:
        """The inverse of packed."""
        return stored

    def _scales_of(self, grouped: np.ndarray) -> np.ndarray:
        largest = np.abs(grouped).max(axis=-1)
        return np.maximum(largest / self.largest, _TINY).astype(np.float32)

    @property
    def largest(self) -> float:
        """What a group's largest number becomes."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Int8(_Scaled):
    """Whole numbers from -128 to 127.

    Attributes:
        is_rotated: Whether they are of the rotated matrix; for a scale per output only.
    """

    is_rotated: bool = False

    bits: ClassVar[int] = 8
    dtype: ClassVar[DTypeLike] = jnp.int8
    random_size: ClassVar[float] = 73.6
    # Of 0 to 256 (GPTQ's largest zero point) less 128.
    zeros_dtype: ClassVar[DTypeLike] = jnp.int16
    largest: ClassVar[float] = 127.0  # type: ignore[misc]

    @staticmethod
    def random(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """See _Scaled."""
        return jax.random.randint(key, shape, -127, 128).astype(dtype)

    def rounded(self, quotients: np.ndarray) -> np.ndarray:
        """See _Scaled."""
        return np.rint(quotients).astype(np.int8)

    @property
    def is_product(self) -> bool:
        """See WeightFormat."""
        return super().is_product and not self.is_rotated

    def product(
        self, x: jax.Array, arrays: Mapping[str, jax.Array], placement: Placement = None
    ) -> jax.Array:
        """See WeightFormat."""
        return super().product(rotated(x) if self.is_rotated else x, arrays, placement)

    def rows(self, indices: jax.Array, arrays: Mapping[str, jax.Array]) -> jax.Array:
        """See _Scaled."""
        rows = super().rows(indices, arrays)
        return rotated(rows) if self.is_rotated else rows

    def encode(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """See _Scaled."""
        return super().encode(np.asarray(rotated(values)) if self.is_rotated else values)

    def decode(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """See WeightFormat."""
        values = super().decode(arrays)
        return np.asarray(rotated(values)) if self.is_rotated else values


def rotated(values: Array) -> Array:
    """Rows times Hadamard's matrix in blocks; it is its own inverse.

    Args:
        values: `[rows, in]`.

    Returns:
        float32 `[rows, in]`. A block is as many inputs as the largest power of two that divides
        them, at most 64: more costs more and gained nothing.
    """
    block = min(values.shape[1] & -values.shape[1], _MOST_ROTATED)
    blocks = values.astype(np.float32).reshape(values.shape[0], -1, block)
    at = np.arange(block)
    is_negative = np.bitwise_count(at[:, None] & at) % 2
    hadamard = np.float32(block**-0.5) * (1 - 2 * is_negative.astype(np.float32))
    return (blocks @ hadamard).reshape(values.shape)


@dataclasses.dataclass(frozen=True)
class Fp8(_Scaled):
    """Floating point with 4 bits of exponent and 3 of mantissa."""

    bits: ClassVar[int] = 8
    dtype: ClassVar[DTypeLike] = jnp.float8_e4m3fn
    random_size: ClassVar[float] = 100.0
    largest: ClassVar[float] = 448.0  # type: ignore[misc]

    @staticmethod
    def random(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """See _Scaled: past the largest there is only NaN."""
        drawn = Fp8.random_size * jax.random.normal(key, shape, jnp.float32)
        return jnp.clip(drawn, -Fp8.largest, Fp8.largest).astype(dtype)

    def rounded(self, quotients: np.ndarray) -> np.ndarray:
        """See _Scaled."""
        return quotients.astype(ml_dtypes.float8_e4m3fn)


@dataclasses.dataclass(frozen=True)
class Int4(_Scaled):
    """Whole numbers from 0 to 15, two in a byte; pallas_kernels.quantized_matmul draws how."""

    group: int | None = 128

    bits: ClassVar[int] = 4
    dtype: ClassVar[DTypeLike] = jnp.uint8
    per_byte: ClassVar[int] = 2
    random_size: ClassVar[float] = 4.32
    zero: ClassVar[int] = 8  # type: ignore[misc]

    @staticmethod
    def random(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        """See _Scaled: two numbers from 1 to 15 in a byte, so that their mean is the zero."""
        pairs = jax.random.randint(key, shape, 0, 15 * 15)
        return ((pairs % 15 + 1) | ((pairs // 15 + 1) << 4)).astype(dtype)

    def rounded(self, quotients: np.ndarray) -> np.ndarray:
        """See _Scaled."""
        return (np.clip(np.rint(quotients), -8, 7) + self.zero).astype(np.uint8)

    def _scales_of(self, grouped: np.ndarray) -> np.ndarray:
        """What rounds a group with the least squared error.

        Its largest number, of either sign, becomes about -8, the end of the range with one more
        level: a scale can be negative. Past -8 it is cut off, for smaller steps of all the others.
        """
        at = np.abs(grouped).argmax(axis=-1)[..., None]
        largest = np.take_along_axis(grouped, at, axis=-1)[..., 0]
        largest = np.where(np.abs(largest) < _TINY, _TINY, largest)
        best, least = np.empty_like(largest), np.full(largest.shape, np.inf)
        for level in _LEVELS_OF_LARGEST:
            scales = largest / level
            steps = np.clip(np.rint(grouped / scales[..., None]), -8, 7)
            errors = np.square(steps * scales[..., None] - grouped).sum(axis=-1)
            better = errors < least
            best[better], least[better] = scales[better], errors[better]
        return best.astype(np.float32)

    def packed(self, stored: np.ndarray) -> np.ndarray:
        """See _Scaled: the first half of a group in the low nibbles."""
        low, high = np.split(stored, 2, axis=-1)
        return low | (high << 4)

    def unpacked(self, stored: np.ndarray) -> np.ndarray:
        """See _Scaled."""
        return np.concatenate([stored & 15, stored >> 4], axis=-1)


def _in_order(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    del key
    return jnp.arange(shape[0], dtype=dtype)
