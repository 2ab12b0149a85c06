"""Quantized weights as arrays: int8, float8_e4m3fn or int4, with scales for groups of inputs.

    numbers  int8 or float8_e4m3fn [out, in], or int4: uint8 [out, in / 2]
    scales   float32 [out, in / g];  one group of all inputs is a scale per output
    zeros    whole numbers [out, in / g], or None: 0, and 8 for int4

    w[o, i] = (number[o, i] - zeros[o, i // g]) * scales[o, i // g]

    int4: one group of g inputs is g / 2 bytes:   byte      0      1    ...  g/2 - 1
                                                  low       0      1    ...  g/2 - 1    input
                                                  high     g/2  g/2 + 1 ...   g - 1     input

Low and high nibbles of a group are each consecutive inputs, so that a kernel multiplies them with
two consecutive tiles of x and nothing is interleaved. GPTQ and AWQ weights are converted at load.
An fp8 weight with a scale per block of 128 x 128 has the block's scale for each of its outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.paged_tiles import Ref

CONTRACT_LAST = (((1,), (1,)), ((), ()))


class Quantized(NamedTuple):
    """A weight `[out, in]`, or refs to its arrays in a kernel; the module says what they mean."""

    numbers: Ref
    scales: Ref
    zeros: Ref | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        out, size = self.numbers.shape
        return out, size * 2 if self.is_int4 else size

    @property
    def dtype(self) -> jnp.dtype:
        """Of the numbers."""
        return jnp.dtype(self.numbers.dtype)

    @property
    def is_int4(self) -> bool:
        """Whether a byte has two numbers."""
        return self.dtype == jnp.uint8

    @property
    def group(self) -> int:
        """Inputs that share a scale."""
        return self.shape[1] // self.scales.shape[1]

    @property
    def is_per_output(self) -> bool:
        """Whether a scale can multiply an output's sum, and nothing else is to be done."""
        return self.scales.shape[1] == 1 and self.zeros is None and not self.is_int4


def pack_int4(nibbles: jax.Array, group: int) -> jax.Array:
    """Numbers from 0 to 15, `[out, in]`, in groups of so many inputs -> uint8 `[out, in / 2]`."""
    halves = nibbles.astype(jnp.uint8).reshape(nibbles.shape[0], -1, 2, group // 2)
    return (halves[:, :, 0] | (halves[:, :, 1] << 4)).reshape(nibbles.shape[0], -1)


def dequantized(weight: Quantized) -> jax.Array:
    """float32 `[out, in]`."""
    grouped = weight.numbers.reshape(*weight.scales.shape, -1)
    zero = 0.0
    if weight.is_int4:
        grouped, zero = jnp.concatenate([grouped & 15, grouped >> 4], axis=-1), 8.0
    if weight.zeros is not None:
        zero = weight.zeros.astype(jnp.float32)[:, :, None]
    values = (grouped.astype(jnp.float32) - zero) * weight.scales[:, :, None]
    return values.reshape(weight.shape)


def product(x: jax.Array, weight: Quantized) -> jax.Array:
    """x `[T, in]` times the transposed weight, converted to x's format: float32 `[T, out]`."""
    if weight.is_per_output:
        sums = lax.dot_general(
            x, weight.numbers.astype(x.dtype), CONTRACT_LAST, preferred_element_type=jnp.float32
        )
        return sums * weight.scales.T
    converted = dequantized(weight).astype(x.dtype)
    return lax.dot_general(x, converted, CONTRACT_LAST, preferred_element_type=jnp.float32)
