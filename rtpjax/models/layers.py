"""Building blocks of decoders: projections, embedding, norm, attention over pages, and MLP.

A parameter is declared once, by `param`: its shape, logical axes and format. Initialization,
shardings and the list of tensors that a checkpoint must have derive from that. Weights are
`[out, in]`, as Hugging Face has them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.typing import DTypeLike

from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.sharded import sharded_paged_attention
from rtpjax.models import rope
from rtpjax.models.config import HIDDEN_ACTS, ModelConfig
from rtpjax.models.precision import Precision
from rtpjax.models.step import LayerCache, StepInputs

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}
assert ACTIVATIONS.keys() == set(HIDDEN_ACTS)

_MATRIX_INIT = nnx.initializers.normal(0.02)


def param(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    dtype: DTypeLike,
    *,
    rngs: nnx.Rngs,
    init: nnx.Initializer = _MATRIX_INIT,
) -> nnx.Param[jax.Array]:
    """Declares a parameter.

    Args:
        shape: Its shape.
        axes: A logical axis for each dimension; rtpjax.sharding says where each goes.
        dtype: Its format.
        rngs: Where its initial values come from.
        init: How they are drawn.
    """
    assert len(shape) == len(axes)
    return nnx.Param(init(rngs.params(), shape, dtype), axes=axes)


def product(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x `[T, in]` times weight `[out, in]`, both taken in weight's format: float32 `[T, out]`.

    The float32 result is not only for accuracy: on the CPU a bf16 one is about 10 times slower.
    """
    contract_last = (((1,), (1,)), ((), ()))
    return lax.dot_general(
        x.astype(weight.dtype), weight, contract_last, preferred_element_type=jnp.float32
    )


class Linear(nnx.Module):
    """An affine map.

    Args:
        shape: Out and in features.
        axes: Their logical axes.
        bias: Whether it adds a bias.
        dtype: Format of the parameters.
        rngs: For the initial values.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        dtype: DTypeLike,
        *,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        self.weight = param(shape, axes, dtype, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.bias = param(shape[:1], axes[:1], dtype, rngs=rngs, init=zeros) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[T, in]` -> `[T, out]` in x's dtype."""
        y = product(x, self.weight.get_value())
        if self.bias is not None:
            y = y + self.bias.get_value().astype(jnp.float32)[None, :]
        return y.astype(x.dtype)


class Embedding(nnx.Module):
    """A vector for each token id; tied models score with it too."""

    def __init__(self, vocab_size: int, hidden_size: int, precision: Precision, *, rngs: nnx.Rngs):
        self.precision = precision
        shape = (vocab_size, hidden_size)
        self.weight = param(shape, ("vocab", "embed"), precision.weights, rngs=rngs)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """token_ids int32 `[T]` -> `[T, D]` in the activations' format."""
        rows = jnp.take(self.weight.get_value(), token_ids, axis=0, mode="clip")
        return rows.astype(self.precision.activations)


class RMSNorm(nnx.Module):
    """Division by the root of the mean square over the last axis, then a weight.

    Paper: https://arxiv.org/abs/1910.07467
    """

    def __init__(self, size: int, axis: str, dtype: DTypeLike, *, eps: float, rngs: nnx.Rngs):
        self.eps = eps
        self.weight = param((size,), (axis,), dtype, rngs=rngs, init=nnx.initializers.ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., size]` -> the same shape and dtype, computed in float32."""
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        weight = jnp.expand_dims(self.weight.get_value().astype(jnp.float32), range(x.ndim - 1))
        return (y * weight).astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with rope over a paged cache."""

    def __init__(
        self, config: ModelConfig, window: int | None, dtype: DTypeLike, *, rngs: nnx.Rngs
    ):
        D, H = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * H, config.num_key_value_heads * H
        self.head_dim = H
        self.window = window
        linear = partial(Linear, dtype=dtype, rngs=rngs)
        bias = config.attention_bias
        self.q_proj = linear((q_size, D), ("heads", "embed"), bias=bias)
        self.k_proj = linear((kv_size, D), ("kv_heads", "embed"), bias=bias)
        self.v_proj = linear((kv_size, D), ("kv_heads", "embed"), bias=bias)
        self.o_proj = linear((D, q_size), ("embed", "heads"), bias=config.o_proj_bias)
        norm = partial(RMSNorm, H, "head_dim", dtype, eps=config.rms_norm_eps, rngs=rngs)
        self.q_norm = norm() if config.qk_norm else None
        self.k_norm = norm() if config.qk_norm else None

    def __call__(
        self,
        x: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        step: StepInputs,
        cache: LayerCache,
    ) -> tuple[jax.Array, LayerCache]:
        """x `[T, D]`, cos and sin `[T, rotary_dim // 2]` -> `[T, D]` and the updated cache."""
        q, k, v = (
            proj(x).reshape(x.shape[0], -1, self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = rope.rotate(q, *cos_sin), rope.rotate(k, *cos_sin)
        cache = LayerCache(
            _write(cache.k_pages, step.slots, k), _write(cache.v_pages, step.slots, v)
        )
        attend = (
            paged_attention if step.mesh is None else partial(sharded_paged_attention, step.mesh)
        )
        out = attend(
            q,
            cache.k_pages,
            cache.v_pages,
            step.page_table,
            step.query_start,
            step.context_lens,
            scale=self.head_dim**-0.5,
            window=self.window,
            decode=step.kind == "decode",
        )
        return self.o_proj(out.reshape(x.shape[0], -1)), cache


def _write(pages: jax.Array, slots: jax.Array, values: jax.Array) -> jax.Array:
    """pages `[P, page_size, K, H]` with values `[T, K, H]` at slots `[T]`; in place if donated."""
    flat = pages.reshape(-1, *pages.shape[2:])
    return flat.at[slots].set(values.astype(pages.dtype)).reshape(pages.shape)


class MLP(nnx.Module):
    """Gated feed-forward layer.

    Paper: https://arxiv.org/abs/2002.05202
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.hidden_act = config.hidden_act
        linear = partial(Linear, dtype=dtype, bias=config.mlp_bias, rngs=rngs)
        self.gate_proj = linear((F, D), ("mlp", "embed"))
        self.up_proj = linear((F, D), ("mlp", "embed"))
        self.down_proj = linear((D, F), ("embed", "mlp"))

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[T, D]` -> `[T, D]`."""
        gate = ACTIVATIONS[self.hidden_act](self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x))
