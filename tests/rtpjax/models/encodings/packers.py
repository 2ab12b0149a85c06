"""Packs quantized matrices as GPTQ, AWQ and others describe it, number by number.

Written from the public descriptions and not from rtpjax.models.encodings: loops, no shared code.
Each packer takes whole numbers `[out, in]`, scales and zero points `[out, groups]`, and returns the
stored tensors and the matrix that they stand for, float64.
"""

from __future__ import annotations

import numpy as np

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def words(numbers: np.ndarray, bits: int) -> np.ndarray:
    """uint8 `[..., n]` -> int32 `[..., n * bits / 32]`, the first number in the lowest bits."""
    per_word = 32 // bits
    packed = np.zeros((*numbers.shape[:-1], numbers.shape[-1] // per_word), np.uint64)
    for i in range(numbers.shape[-1]):
        place = np.uint64(bits * (i % per_word))
        packed[..., i // per_word] |= numbers[..., i].astype(np.uint64) << place
    return packed.astype(np.uint32).view(np.int32)


def dequantized(numbers, scales, zeros, group_of) -> np.ndarray:
    """(number - zero) * scale, with each input's group."""
    values = np.zeros(numbers.shape)
    for i, group in enumerate(group_of):
        values[:, i] = (numbers[:, i].astype(float) - zeros[:, group]) * scales[:, group]
    return values


def gptq(rng, out, num_inputs, *, bits, group, is_symmetric, is_reordered, version="gptq"):
    size = num_inputs if group == -1 else group
    groups = num_inputs // size
    numbers = rng.integers(0, 2**bits, (out, num_inputs))
    scales = rng.uniform(0.01, 0.1, (out, groups)).astype(np.float16)
    zeros = rng.integers(1, 2**bits, (out, groups))
    if is_symmetric:
        zeros[:] = 2 ** (bits - 1)
    group_of = np.arange(num_inputs) // size
    if is_reordered:
        rng.shuffle(group_of)
    offset = 1 if version == "gptq" else 0
    tensors = {
        "qweight": words(numbers.T.swapaxes(0, 1), bits).T.copy(),
        "qzeros": words((zeros - offset).T, bits),
        "scales": scales.T.copy(),
        "g_idx": group_of.astype(np.int32),
    }
    return tensors, dequantized(numbers, scales.astype(float), zeros, group_of)


def awq(rng, out, num_inputs, *, group):
    groups = num_inputs // group
    numbers = rng.integers(0, 16, (out, num_inputs))
    scales = rng.uniform(0.01, 0.1, (out, groups)).astype(np.float16)
    zeros = rng.integers(0, 16, (out, groups))

    def packed(values: np.ndarray) -> np.ndarray:  # [rows, out]
        ordered = np.zeros_like(values)
        for o in range(values.shape[1]):
            ordered[:, o] = values[:, o // 8 * 8 + AWQ_ORDER[o % 8]]
        return words(ordered, 4)

    tensors = {"qweight": packed(numbers.T), "qzeros": packed(zeros.T), "scales": scales.T.copy()}
    group_of = np.arange(num_inputs) // group
    return tensors, dequantized(numbers, scales.astype(float), zeros, group_of)
