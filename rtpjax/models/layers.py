"""Building blocks of decoders: projections, embedding, norm, attention over pages, and MLP.

A parameter is declared once, by `param`: its shape, logical axes and format. Initialization,
shardings and the list of tensors that a checkpoint must have derive from that. Weights are
`[out, in]`, as Hugging Face has them; rtpjax.models.weight_formats says how they are kept.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
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
from rtpjax.models import cache_write, rope
from rtpjax.models.cache import LayerCache, PagedCache
from rtpjax.models.config import HIDDEN_ACTS, ModelConfig
from rtpjax.models.precision import Precision
from rtpjax.models.rope import RopeConfig
from rtpjax.models.step import StepInputs
from rtpjax.models.weight_formats import PLAIN, WeightFormat, param

assert set(ACTIVATIONS) == set(HIDDEN_ACTS)

# Cosine and sine of every token's angles, each float32 `[T, rotary_dim // 2]`.
Angles = Mapping[RopeConfig, tuple[jax.Array, jax.Array]]


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
    x: jax.Array | Normed,
    layers: Sequence[Linear],
    mesh: MeshAxes | None,
    *,
    gated: str | None = None,
    residual: jax.Array | None = None,
) -> list[jax.Array]:
    """Affine maps of the same x, in one kernel where there is one for so few rows.

    Formats that do something to x first (a rotation, an order of inputs) are multiplied one by one.

    Args:
        x: `[T, in]`, maybe still to be normalized.
        layers: The maps; one only, where they are split over their inputs.
        mesh: Devices that they are split over; None for one device.
        gated: Of two maps: act(first) * second is the only result.
        residual: `[T, out]`, added to the result of one map.

    Returns:
        `[T, out]` of each, in x's dtype.
    """
    is_product = all(layer.format.is_product for layer in layers)
    norm = x.norm if is_product and isinstance(x, Normed) else None
    if isinstance(x, Normed):
        x = x.value if norm is None else x.x
    if not is_product:
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
        self.scale = config.embedding_scale

    def __call__(self, token_ids: jax.Array) -> jax.Array:
        """token_ids int32 `[T]` -> `[T, D]` in the activations' format."""
        # Of one row XLA makes a slice, and sends the whole embedding to every device for it.
        num_tokens = token_ids.shape[0]
        rows = self.rows(jnp.pad(token_ids, (0, max(0, 2 - num_tokens))))[:num_tokens]
        x = rows.astype(self.precision.activations)
        if self.scale == 1.0:
            return x
        # Models were trained with the factor in the format of their weights.
        return x * jnp.asarray(self.scale, self.precision.weights).astype(x.dtype)


class RMSNorm(nnx.Module):
    """Division by the root of the mean square over the last axis, then a weight.

    Paper: https://arxiv.org/abs/1910.07467

    Args:
        size: Features.
        axis: Their logical axis.
        dtype: Of the weight.
        eps: Added to the mean square.
        offset: Added to the checkpoint's weight (Gemma's are stored less 1); it is added once, when
            the weight is read, and the sum is kept in float32.
        rngs: For the initial values.
    """

    def __init__(
        self,
        size: int,
        axis: str,
        dtype: DTypeLike,
        *,
        eps: float,
        offset: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.eps = eps
        self.weight = param(
            (size,),
            (axis,),
            jnp.float32 if offset else dtype,
            rngs=rngs,
            init=nnx.initializers.ones,
            offset=offset,
        )

    def __call__(self, x: jax.Array) -> Normed:
        """x `[..., size]`, to be normalized by what takes it."""
        return Normed(x, self)


@dataclasses.dataclass(frozen=True)
class Normed:
    """x and the norm that is still to be applied: kernels of products do both in one go.

    Attributes:
        x: `[..., size]`.
        norm: Its norm.
    """

    x: jax.Array
    norm: RMSNorm

    @property
    def value(self) -> jax.Array:
        """The norm of x: x's shape and dtype, computed in float32."""
        return rms_norm(self.x, self.norm.weight.get_value(), self.norm.eps)


@dataclasses.dataclass(frozen=True)
class Projected:
    """What a block adds to the residual stream: the last product is still to be computed.

    `x + projected` computes product and sum in one kernel where there is one.

    Attributes:
        features: `[T, in]`.
        linear: The block's last map.
        mesh: Devices that it is split over.
    """

    features: jax.Array
    linear: Linear
    mesh: MeshAxes | None

    @property
    def value(self) -> jax.Array:
        """`[T, D]`."""
        return linears(self.features, (self.linear,), self.mesh)[0]

    def __radd__(self, x: jax.Array) -> jax.Array:
        """The residual stream `[T, D]` with the block's output."""
        return linears(self.features, (self.linear,), self.mesh, residual=x)[0]


@dataclasses.dataclass(frozen=True)
class Summand:
    """What a block adds to the residual stream, computed.

    Attributes:
        value: `[T, D]`.
    """

    value: jax.Array

    def __radd__(self, x: jax.Array) -> jax.Array:
        """The residual stream `[T, D]` with it."""
        return summed_once(x + self.value.astype(x.dtype))


class Attention(nnx.Module):
    """Grouped-query attention with rope over a paged cache.

    Args:
        config: Of the model.
        layer: Which layer's, from 0.
        dtype: Of the weights.
        rngs: For the initial values.
    """

    def __init__(self, config: ModelConfig, layer: int, dtype: DTypeLike, *, rngs: nnx.Rngs):
        D, H = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_attention_heads * H, config.num_key_value_heads * H
        self.head_dim = H
        self.window = config.layer_windows[layer]
        self.rope = config.layer_ropes[layer]
        self.scale = H**-0.5 if config.attention_scale is None else config.attention_scale
        self.soft_cap = config.attention_soft_cap
        linear = partial(Linear, dtype=dtype, format=config.quantization.layers, rngs=rngs)
        bias = config.attention_bias
        self.q_proj = linear((q_size, D), ("heads", "embed"), bias=bias)
        self.k_proj = linear((kv_size, D), ("kv_heads", "embed"), bias=bias)
        self.v_proj = linear((kv_size, D), ("kv_heads", "embed"), bias=bias)
        self.o_proj = linear((D, q_size), ("embed", "heads"), bias=config.o_proj_bias)
        self.sinks = (
            param((config.num_attention_heads,), ("heads",), dtype, rngs=rngs)
            if config.has_sinks
            else None
        )
        self.is_normed_whole = config.qk_norm == "projection"
        sizes = ((q_size, "heads"), (kv_size, "kv_heads"))
        if not self.is_normed_whole:
            sizes = ((H, "head_dim"), (H, "head_dim"))
        norms = [
            RMSNorm(*size, dtype, eps=config.rms_norm_eps, offset=config.norm_offset, rngs=rngs)
            for size in (sizes if config.qk_norm else ())
        ]
        self.q_norm, self.k_norm = norms or (None, None)

    def __call__(
        self,
        x: jax.Array | Normed,
        angles: Angles,
        step: StepInputs,
        cache: LayerCache,
    ) -> tuple[Projected, PagedCache]:
        """What it adds to the residual stream, and the updated pages.

        Args:
            x: `[T, D]`, normalized where the model does.
            angles: Of this step's tokens, by the rope that makes them.
            step: The batch.
            cache: What the layer sees of the caches.
        """
        projections = self.q_proj, self.k_proj, self.v_proj
        q, k, v = linears(x, projections, step.mesh)
        q, k = self._normed_whole(q, k)
        q, k, v = (y.reshape(y.shape[0], -1, self.head_dim) for y in (q, k, v))
        q, k = self._rotated(q, k, angles, step.mesh)
        pages = cache_write.write(cache, k, v, step)
        attend = (
            paged_attention if step.mesh is None else partial(sharded_paged_attention, step.mesh)
        )
        out = attend(
            q,
            pages.k_pages,
            pages.v_pages,
            cache.page_table,
            step.query_start,
            step.context_lens,
            scale=self.scale,
            window=self.window,
            soft_cap=self.soft_cap,
            sinks=None if self.sinks is None else self.sinks.get_value().astype(jnp.float32),
            k_scales=pages.k_scales,
            v_scales=pages.v_scales,
            decode=step.kind == "decode",
        )
        return Projected(out.reshape(out.shape[0], -1), self.o_proj, step.mesh), pages

    def _normed_whole(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """q `[T, N * H]` and k `[T, K * H]`, normalized over all heads where the model does."""
        if self.q_norm is None or self.k_norm is None or not self.is_normed_whole:
            return q, k
        return self.q_norm(q).value, self.k_norm(k).value

    def _rotated(
        self, q: jax.Array, k: jax.Array, angles: Angles, mesh: MeshAxes | None
    ) -> Sequence[jax.Array]:
        """q `[T, N, H]` and k `[T, K, H]`, normalized per head where the model does, and turned."""
        norms, eps = None, 0.0
        if self.q_norm is not None and self.k_norm is not None and not self.is_normed_whole:
            if self.rope is None:
                return self.q_norm(q).value, self.k_norm(k).value
            norms = self.q_norm.weight.get_value(), self.k_norm.weight.get_value()
            eps = self.q_norm.eps
        if self.rope is None:
            return q, k
        if self.rope.is_interleaved:
            q, k = (rope.halves(x, self.rope.rotary_dim) for x in (q, k))
        return sharded_rotate(mesh, q, k, angles[self.rope], norms, eps=eps)


class MLP(nnx.Module):
    """Gated feed-forward layer.

    Paper: https://arxiv.org/abs/2002.05202
    """

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        hidden_act: str,
        dtype: DTypeLike,
        *,
        format: WeightFormat = PLAIN,
        bias: bool = False,
        rngs: nnx.Rngs,
    ):
        D, F = hidden_size, intermediate_size
        self.hidden_act = hidden_act
        linear = partial(Linear, dtype=dtype, format=format, bias=bias, rngs=rngs)
        self.gate_proj = linear((F, D), ("mlp", "embed"))
        self.up_proj = linear((F, D), ("mlp", "embed"))
        self.down_proj = linear((D, F), ("embed", "mlp"))

    def __call__(self, x: jax.Array | Normed, mesh: MeshAxes | None) -> Projected:
        """What it adds to the residual stream.

        Args:
            x: `[T, D]`, normalized where the model does.
            mesh: Devices that the layer is split over.
        """
        both = self.gate_proj, self.up_proj
        (hidden,) = linears(x, both, mesh, gated=self.hidden_act)
        return Projected(hidden, self.down_proj, mesh)
