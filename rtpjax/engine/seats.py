"""The per-request state on the devices: a seat for each request that can run at once."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.sharding import Sharding
from jax.typing import DTypeLike

from rtpjax.engine.batch import NO_SLOT
from rtpjax.engine.limits import MAX_BAD_WORD_TOKENS, MAX_BAD_WORDS, MAX_BIASES
from rtpjax.engine.sampling import SlotState


def allocate(num_seats: int, max_model_len: int, vocab_size: int, sharding: Sharding) -> SlotState:
    """Empty seats, `[num_seats, ...]`."""

    def array(shape: tuple[int, ...], dtype: DTypeLike, value: int) -> jax.Array:
        return jnp.full((num_seats, *shape), value, dtype, device=sharding)

    return SlotState(*(array(*field) for field in _fields(max_model_len, vocab_size)))


def seat_bytes(max_model_len: int, vocab_size: int) -> int:
    """What one seat takes of a device's memory."""
    return sum(
        math.prod(shape) * jnp.dtype(dtype).itemsize
        for shape, dtype, _ in _fields(max_model_len, vocab_size)
    )


def _fields(max_model_len: int, vocab_size: int) -> list[tuple[tuple[int, ...], DTypeLike, int]]:
    """Shape, format and empty value of a seat's part of each field of SlotState."""
    fields = {
        "tokens": ((max_model_len + 1,), jnp.int32, 0),
        "bias_ids": ((MAX_BIASES,), jnp.int32, NO_SLOT),
        "bias_values": ((MAX_BIASES,), jnp.float32, 0),
        "bias_until": ((MAX_BIASES,), jnp.int32, 0),
        "bad_words": ((MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS), jnp.int32, NO_SLOT),
        "masks": ((-(-vocab_size // 32),), jnp.int32, 0),
    }
    return [fields[name] for name in SlotState._fields]
