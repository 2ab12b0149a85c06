"""Building blocks of decoders: projections, embedding, norm, attention over pages, and MLP.

A parameter is declared once, by `param`: its shape, logical axes and format. Initialization,
shardings and the list of tensors that a checkpoint must have derive from that. Weights are
`[out, in]`, as Hugging Face has them; rtpjax.models.weight_formats says how they are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.quantized import Quantized
from pallas_kernels.row_matmul import ACTIVATIONS, rms_norm
from pallas_kernels.sharded import (
    MeshAxes,
    sharded_paged_attention,
    sharded_rotate,
    sharded_row_matmul,
    summed_once,
)
from rtpjax.models import cache_write
from rtpjax.models.config import HIDDEN_ACTS, ModelConfig
from rtpjax.models.precision import Precision
from rtpjax.models.step import PagedCache, StepInputs
from rtpjax.models.weight_formats import PLAIN, WeightFormat, param

assert set(ACTIVATIONS) == set(HIDDEN_ACTS)


class Matrix(nnx.Module):
    """A module whose matrix is kept in a format: the format's parameters are its attributes.

    Args:
        shape: Out and in features.
        axes: Their logical axes.
        dtype: Of the matrix where it is not quantized.
        format: How it is kept.
        rngs: For the initial values.
    """

    weight: nnx.Param[jax.Array]  # every format has it

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        dtype: DTypeLike,
        *,
        format: WeightFormat,
        rngs: nnx.Rngs,
    ):
        self.format = format
        self.axes = axes
        for name, value in format.declare(shape, axes, dtype, rngs=rngs).items():
            setattr(self, name, value)

    @property
    def operand(self) -> jax.Array | Quantized:
        """What kernels take for the matrix."""
        return self.format.operand(self._arrays())

    def product(self, x: jax.Array, mesh: MeshAxes | None = None) -> jax.Array:
        """x `[T, in]` -> float32 `[T, out]`.

        mesh: Devices that the matrix is split over; None for one device.
        """
        placement = None if mesh is None else (mesh, mesh.split(*self.axes))
        return self.format.product(x, self._arrays(), placement)

    def rows(self, indices: jax.Array) -> jax.Array:
        """Some rows of the matrix, `[T]` -> `[T, in]`."""
        return self.format.rows(indices, self._arrays())

    def _arrays(self) -> dict[str, jax.Array]:
        return {name: getattr(self, name).get_value() for name in self.format.parts}


class Linear(Matrix):
    """An affine map.

    Args:
        shape: Out and in features.
        axes: Their logical axes.
        dtype: Format of what is not quantized.
        format: How its matrix is kept.
        bias: Whether it adds a bias.
        rngs: For the initial values.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        axes: tuple[str, str],
        dtype: DTypeLike,
        *,
        format: WeightFormat = PLAIN,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        super().__init__(shape, axes, dtype, format=format, rngs=rngs)
        zeros = nnx.initializers.zeros
        self.bias = param(shape[:1], axes[:1], dtype, rngs=rngs, init=zeros) if bias else None

    def __call__(self, x: jax.Array, mesh: MeshAxes | None = None) -> jax.Array:
        """x `[T, in]` -> `[T, out]` in x's dtype."""
        y = self.product(x, mesh)
        if self.bias is not None:
            y = y + self.bias.get_value().astype(jnp.float32)[None, :]
        return y.astype(x.dtype)


def linears(
    x: jax.Array,
    layers: Sequence[Linear],
    mesh: MeshAxes | None,
    *,
    norm: RMSNorm | None = None,
    gated: str | None = None,
    residual: jax.Array | None = None,
) -> list[jax.Array]:
    """Affine maps of the same x, in one kernel where there is one for so few rows.

    Formats that do something to x first (a rotation, an order of inputs) are multiplied one by one.

    Args:
        x: `[T, in]`.
        layers: The maps; one only, where they are split over their inputs.
        mesh: Devices that they are split over; None for one device.
        norm: Of x, before the maps.
        gated: Of two maps: act(first) * second is the only result.
        residual: `[T, out]`, added to the result of one map.

    Returns:
        `[T, out]` of each, in x's dtype.
    """
    if not all(layer.format.is_product for layer in layers):
        x = x if norm is None else norm(x)
        ys = [layer(x, mesh) for layer in layers]
        if gated is not None:
            ys = [ACTIVATIONS[gated](ys[0]) * ys[1]]
        return ys if residual is None else [summed_once(residual + ys[0])]
    return sharded_row_matmul(
        mesh,
        [
            PartitionSpec(None, None) if mesh is None else mesh.split(*layer.axes)
            for layer in layers
        ],
        x,
        [layer.operand for layer in layers],
        [None if layer.bias is None else layer.bias.get_value() for layer in layers],
        norm=None if norm is None else norm.weight.get_value(),
        eps=0.0 if norm is None else norm.eps,
        gated=gated,
        residual=residual,
    )


class Embedding(Matrix):
    """A vector for each token id; tied models score with it too."""

    def __init__(self, config: ModelConfig, precision: Precision, *, rngs: nnx.Rngs):
        self.precision = precision
        shape = config.vocab_size, config.hidden_size
        axes = ("vocab" if config.tie_word_embeddings else "lookup", "embed")
        format = config.quantization.embedding
        super().__init__(shape, axes, precision.weights, format=format, rngs=rngs)

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """token_ids int32 `[T]` -> `[T, D]` in the activations' format."""
        return self.rows(token_ids).astype(self.precision.activations)


class RMSNorm(nnx.Module):
    """Division by the root of the mean square over the last axis, then a weight.

    Paper: https://arxiv.org/abs/1910.07467
    """

    def __init__(self, size: int, axis: str, dtype: DTypeLike, *, eps: float, rngs: nnx.Rngs):
        self.eps = eps
        self.weight = param((size,), (axis,), dtype, rngs=rngs, init=nnx.initializers.ones)

    def __call__(self, x: jax.Array) -> jax.Array:
        """x `[..., size]` -> the same shape and dtype, computed in float32."""
        return rms_norm(x, self.weight.get_value(), self.eps)


class Attention(nnx.Module):
    """Grouped-query attention with rope over a paged cache."""

    def __init__(
        self, config: ModelConfig, window: int | None, dtype: DTypeLike, *, rngs: nnx.Rngs
    ):
        D, H = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * H, config.num_key_value_heads * H
        self.head_dim = H
        self.window = window
        linear = partial(Linear, dtype=dtype, format=config.quantization.layers, rngs=rngs)
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
        norm: RMSNorm,
        cos_sin: tuple[jax.Array, jax.Array],
        step: StepInputs,
        cache: PagedCache,
    ) -> tuple[jax.Array, PagedCache]:
        """x + attention of norm(x), and the updated cache.

        Args:
            x: `[T, D]`, the residual stream.
            norm: What normalizes it here.
            cos_sin: Cosine and sine of the angles, each `[T, rotary_dim // 2]`.
            step: The batch.
            cache: What has this layer's pages, which the batch names.
        """
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = (
            y.reshape(x.shape[0], -1, self.head_dim)
            for y in linears(x, projections, step.mesh, norm=norm)
        )
        q, k = self._rotated(q, k, cos_sin, step.mesh)
        cache = cache_write.write(cache, k, v, step)
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
            k_scales=cache.k_scales,
            v_scales=cache.v_scales,
            decode=step.kind == "decode",
        )
        flat = out.reshape(x.shape[0], -1)
        (x,) = linears(flat, (self.o_proj,), step.mesh, residual=x)
        return x, cache

    def _rotated(
        self,
        q: jax.Array,
        k: jax.Array,
        cos_sin: tuple[jax.Array, jax.Array],
        mesh: MeshAxes | None,
    ) -> list[jax.Array]:
        """q `[T, N, H]` and k `[T, K, H]`, normalized where the model does, and turned."""
        norms, eps = None, 0.0
        if self.q_norm is not None and self.k_norm is not None:
            norms = self.q_norm.weight.get_value(), self.k_norm.weight.get_value()
            eps = self.q_norm.eps
        return sharded_rotate(mesh, q, k, cos_sin, norms, eps=eps)


class MLP(nnx.Module):
    """Gated feed-forward layer.

    Paper: https://arxiv.org/abs/2002.05202
    """

    def __init__(self, config: ModelConfig, dtype: DTypeLike, *, rngs: nnx.Rngs):
        D, F = config.hidden_size, config.intermediate_size
        self.hidden_act = config.hidden_act
        format = config.quantization.layers
        linear = partial(Linear, dtype=dtype, format=format, bias=config.mlp_bias, rngs=rngs)
        self.gate_proj = linear((F, D), ("mlp", "embed"))
        self.up_proj = linear((F, D), ("mlp", "embed"))
        self.down_proj = linear((D, F), ("embed", "mlp"))

    def __call__(self, x: jax.Array, norm: RMSNorm, mesh: MeshAxes | None) -> jax.Array:
        """x + the layer's output for norm(x).

        Args:
            x: `[T, D]`, the residual stream.
            norm: What normalizes it here.
            mesh: Devices that the layer is split over.
        """
        both = self.gate_proj, self.up_proj
        (hidden,) = linears(x, both, mesh, norm=norm, gated=self.hidden_act)
        return linears(hidden, (self.down_proj,), mesh, residual=x)[0]
