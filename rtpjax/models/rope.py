"""Rotary position embeddings: reading their options, and the angles of tokens.

pallas_kernels.rotate turns queries and keys by them.

Angles are a function of a token's position alone, never of what else is in the step: a rotated key
in the cache stays right when its sequence grows, is computed in chunks, or shares its pages with
another sequence.

"dynamic" (NTK by length) as first described is not such a function: its base grows with the
sequence, and all keys would have to be rotated anew. Here a token at position p is rotated for a
sequence of p + 1 tokens. Up to max_position_embeddings this is exactly transformers; beyond, it is
what transformers computes when it generates token by token with its cache, and differs from
transformers only for a prompt that is longer by itself.

Source: https://github.com/huggingface/transformers/blob/main/src/transformers/modeling_rope_utils.py
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rtpjax.errors import CheckpointError

# Noted by trainers; without effect on the angles.
_WITHOUT_EFFECT = frozenset({"finetuned"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Options of the rotary embedding, named as in config.json.

    Attributes:
        rope_type: One of `TYPES`.
        rotary_dim: Leading features of a head that are rotated; even.
        max_position_embeddings: Tokens of context the checkpoint is made for.
        original_max_position_embeddings: Tokens of context before the scaling was applied.
        attention_factor: Factor on cos and sin; None lets yarn derive it.
        is_interleaved: Whether features 2i and 2i + 1 turn together, in place of i and
            rotary_dim // 2 + i; see `halves`.
    """

    rope_type: str
    rope_theta: float
    rotary_dim: int
    max_position_embeddings: int
    original_max_position_embeddings: int
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    is_interleaved: bool = False

    @staticmethod
    def from_hf(hf: Mapping[str, Any], head_dim: int) -> RopeConfig:
        """Reads rope_theta and rope_scaling (transformers 4) or rope_parameters (transformers 5).

        Args:
            hf: config.json, with `max_position_embeddings`.
            head_dim: Features of one head.

        Raises:
            CheckpointError: A type or an option is unknown, or one that the type needs is missing.
        """
        options = {key: hf[key] for key in _COMMON if hf.get(key) is not None}
        given = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        # A null means "not given", as everywhere in config.json.
        options |= {k: v for k, v in given.items() if v is not None and k not in _WITHOUT_EFFECT}
        old_name = options.pop("type", "default")
        rope_type = options.pop("rope_type", old_name)
        _check_options(rope_type, options)
        rotary_dim = int(head_dim * options.pop("partial_rotary_factor", 1.0))
        if rotary_dim <= 0 or rotary_dim % 2 or rotary_dim > head_dim:
            raise CheckpointError(
                f"config.json: rope would rotate {rotary_dim} of a head's {head_dim} features; "
                "expected an even number. Check head_dim and partial_rotary_factor."
            )
        options.setdefault("rope_theta", 10000.0)
        options.setdefault("original_max_position_embeddings", options["max_position_embeddings"])
        is_interleaved = bool(hf.get("rope_is_interleaved"))
        return RopeConfig(
            rope_type=rope_type, rotary_dim=rotary_dim, is_interleaved=is_interleaved, **options
        )


def _check_options(rope_type: str, options: Mapping[str, Any]) -> None:
    if rope_type not in TYPES:
        raise CheckpointError(
            f"config.json: rope_type {rope_type!r} is not supported; "
            f"supported are {', '.join(sorted(TYPES))}."
        )
    _, required, optional = TYPES[rope_type]
    known = {*_COMMON, *required, *optional}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise CheckpointError(
            f"config.json: rope_type {rope_type!r} does not take the options {unknown}, and "
            f"to ignore them could change the answers. Supported are {sorted(known)}."
        )
    missing = [key for key in required if key not in options]
    if missing:
        raise CheckpointError(f"config.json: rope_type {rope_type!r} needs {missing}.")


def _plain(rope: RopeConfig) -> np.ndarray:
    exponent = np.arange(0, rope.rotary_dim, 2, dtype=np.float32) / np.float32(rope.rotary_dim)
    return (1.0 / np.float32(rope.rope_theta) ** exponent).astype(np.float32)


def _linear(rope: RopeConfig) -> np.ndarray:
    return _plain(rope) / np.float32(rope.factor)


def _llama3(rope: RopeConfig) -> np.ndarray:
    """Long waves are slowed down by `factor`, short ones are kept, those between are blended."""
    inv_freq = _plain(rope)
    wavelen = 2 * math.pi / inv_freq
    low, high = rope.low_freq_factor, rope.high_freq_factor
    kept = (rope.original_max_position_embeddings / wavelen - low) / (high - low)
    kept = np.clip(kept, 0.0, 1.0)
    return ((1 - kept) * inv_freq / rope.factor + kept * inv_freq).astype(np.float32)


def _yarn(rope: RopeConfig) -> np.ndarray:
    """Features that turn often within the original context are kept, slow ones interpolated.

    Paper: https://arxiv.org/abs/2309.00071
    """

    def feature_turning(num_turns: float) -> float:
        turn = rope.original_max_position_embeddings / (num_turns * 2 * math.pi)
        return rope.rotary_dim * math.log(turn) / (2 * math.log(rope.rope_theta))

    low, high = feature_turning(rope.beta_fast), feature_turning(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.rotary_dim - 1)
    width = high - low or 0.001
    interpolated = np.clip((np.arange(rope.rotary_dim // 2) - low) / width, 0.0, 1.0)
    inv_freq = _plain(rope)
    return (inv_freq / rope.factor * interpolated + inv_freq * (1 - interpolated)).astype(
        np.float32
    )


class RopeType(NamedTuple):
    """One way to derive angles: its inverse frequencies, and the options it needs and takes."""

    inv_freq: Callable[[RopeConfig], np.ndarray]
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()


_COMMON = (
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "original_max_position_embeddings",
)
TYPES = {
    "default": RopeType(_plain),
    "linear": RopeType(_linear, ("factor",)),
    "dynamic": RopeType(_plain, ("factor",)),  # cos_sin stretches them by position
    "llama3": RopeType(_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": RopeType(
        _yarn,
        ("factor",),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
}


@functools.cache
def inv_freq(rope: RopeConfig) -> np.ndarray:
    """Inverse frequencies, radians per token: float32 `[rotary_dim // 2]`."""
    return TYPES[rope.rope_type].inv_freq(rope)


def attention_factor(rope: RopeConfig) -> float:
    """The factor on cos and sin, which scales attention scores by its square."""
    if rope.rope_type != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor

    def mscale(weight: float) -> float:
        return 1.0 if rope.factor <= 1 else 0.1 * weight * math.log(rope.factor) + 1.0

    if rope.mscale and rope.mscale_all_dim:
        return mscale(rope.mscale) / mscale(rope.mscale_all_dim)
    return mscale(1.0)


def cos_sin(rope: RopeConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of every token's angles.

    Args:
        rope: Options.
        positions: int32 `[T]`.

    Returns:
        Two float32 arrays `[T, rotary_dim // 2]`.
    """
    angles = positions.astype(jnp.float32)[:, None] * inv_freq(rope)[None, :]
    if rope.rope_type == "dynamic":
        angles = angles * _dynamic_stretch(rope, positions)
    factor = attention_factor(rope)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def halves(x: jax.Array, rotary_dim: int) -> jax.Array:
    """Heads `[T, heads, H]` whose pairs (2i, 2i + 1) become (i, rotary_dim // 2 + i).

    Scores do not change where queries and keys are put into another order alike.
    """
    pairs, rest = x[..., :rotary_dim], x[..., rotary_dim:]
    swapped = pairs.reshape(*pairs.shape[:-1], rotary_dim // 2, 2).swapaxes(-1, -2)
    return jnp.concatenate((swapped.reshape(pairs.shape), rest), axis=-1)


def _dynamic_stretch(rope: RopeConfig, positions: jax.Array) -> jax.Array:
    """Dynamic NTK's factor on inverse frequencies, `[T, rotary_dim // 2]`; 1 up to the limit.

    The base grows by g ** (d / (d - 2)), so frequency i of d / 2 shrinks by g ** (2i / (d - 2)).
    """
    limit, d = rope.max_position_embeddings, rope.rotary_dim
    context_len = jnp.maximum(positions + 1, limit).astype(jnp.float32)
    growth = rope.factor * context_len / limit - (rope.factor - 1)
    exponent = np.arange(0, d, 2, dtype=np.float32) / np.float32(d - 2)
    return growth[:, None] ** -exponent[None, :]
