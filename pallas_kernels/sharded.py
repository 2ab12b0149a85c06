"""Attention, products and experts over a mesh: every device does its own heads or features.

XLA cannot split a Pallas kernel by itself; without shard_map it would gather the whole cache.

device        0              1          ...        attention: heads N and kv heads K are split in
q          [T, N / n, H] [T, N / n, H]             an order that keeps a kv head and its group
k, v pages [.., K / m, H] [.., K / m, H]           together; m < n where devices share a kv head;
                                                   page tables and lengths are on every device

Products: weights are split over their outputs, and so is the result (q, k, v, gate, up); or over
their inputs, as x is, and the devices add up their results (o_proj, down_proj): one all-reduce.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pallas_kernels.paged_attention import paged_attention
from pallas_kernels.quantized import Quantized
from pallas_kernels.quantized_matmul import quantized_matmul
from pallas_kernels.quantized_write import Operands as WriteOperands
from pallas_kernels.quantized_write import Written, quantized_write
from pallas_kernels.registry import current_target
from pallas_kernels.rotate import normed_rotate
from pallas_kernels.row_matmul import MAX_ROWS, Biases, Weight, Weights, row_matmul


@dataclasses.dataclass(frozen=True)
class MeshAxes:
    """A mesh, and the names of its axes that things are split over; they are copied over others.

    Attributes:
        mesh: Devices.
        heads: For query heads; begins with kv_heads.
        kv_heads: For key/value heads.
        mlp: For the features inside an MLP.
        vocab: For the rows of an output matrix.
        experts: For experts.
        expert_mlp: For the features inside an expert.
    """

    mesh: Mesh
    heads: tuple[str, ...]
    kv_heads: tuple[str, ...]
    mlp: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    experts: tuple[str, ...] = ()
    expert_mlp: tuple[str, ...] = ()

    def ways(self, axes: tuple[str, ...]) -> int:
        """Parts that something over these axes is cut into."""
        return math.prod(self.mesh.shape[name] for name in axes)

    def split(self, *names: str) -> P:
        """How an array is split whose dimensions have these names, as attributes here have."""
        over = {
            "heads": self.heads, "kv_heads": self.kv_heads, "mlp": self.mlp, "vocab": self.vocab,
        }  # fmt: skip
        return P(*(over.get(name) or None for name in names))

    def map(
        self, function: Callable[..., Any], in_specs: Any, out_specs: Any
    ) -> Callable[..., Any]:
        """shard_map over all axes that are not mapped yet, also inside of another shard_map."""
        context = jax.sharding.get_abstract_mesh()
        return jax.shard_map(
            function,
            mesh=self.mesh if context.empty else None,
            axis_names=set(self.mesh.axis_names) - set(context.manual_axes),
            in_specs=in_specs,
            out_specs=out_specs,
            check_vma=False,  # pallas_call does not say over which axes its result varies
        )


def sharded_paged_attention(
    axes: MeshAxes,
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    query_start: jax.Array,
    context_lens: jax.Array,
    *,
    sinks: jax.Array | None = None,
    k_scales: jax.Array | None = None,
    v_scales: jax.Array | None = None,
    attention: Callable[..., jax.Array] = paged_attention,
    **options: object,
) -> jax.Array:
    """`paged_attention` with heads split over a mesh.

    Args:
        axes: The mesh. With one device the op is called as it is.
        q: This and the other arrays are paged_attention's, whole.
        k_pages: See there.
        v_pages: See there.
        page_table: See there.
        query_start: See there.
        context_lens: See there.
        sinks: See there.
        k_scales: See there.
        v_scales: See there.
        attention: What computes a device's part; takes paged_attention's arguments.
        **options: Other arguments of paged_attention.

    Returns:
        `[T, N, H]`, heads split.

    Raises:
        ValueError: The axes do not divide the heads.
    """
    named = {"sinks": sinks, "k_scales": k_scales, "v_scales": v_scales}
    arrays = (q, k_pages, v_pages, page_table, query_start, context_lens)
    if axes.mesh.size == 1:
        return attention(*arrays, **named, **options)
    for what, count, names in (
        ("heads", q.shape[1], axes.heads),
        ("kv heads", k_pages.shape[2], axes.kv_heads),
    ):
        if count % axes.ways(names):
            raise ValueError(
                f"paged_attention: {count} {what} cannot be split over the {axes.ways(names)} "
                f"devices of mesh axes {names}; use a number of devices that divides them."
            )
    pages = P(None, None, axes.kv_heads, None)
    scales = P(None, axes.kv_heads)
    named_specs = {"sinks": P(axes.heads), "k_scales": scales, "v_scales": scales}
    heads = P(None, axes.heads, None)

    def local(arrays: tuple[jax.Array, ...], named: dict[str, jax.Array | None]) -> jax.Array:
        return partial(attention, **options)(*arrays, **named)

    return axes.map(local, ((heads, pages, pages, P(), P(), P()), named_specs), heads)(
        arrays, named
    )


def sharded_row_matmul(
    axes: MeshAxes | None,
    specs: Sequence[P],
    x: jax.Array,
    weights: Weights,
    biases: Biases,
    *,
    norm: jax.Array | None = None,
    residual: jax.Array | None = None,
    matmul: Callable[..., list[jax.Array]] | None = None,
    **options: Any,
) -> list[jax.Array]:
    """`row_matmul` with weights split over a mesh; any number of rows.

    Parts of a sum go to the other devices in x's format: float32 would be twice the bytes, and
    XLA's kernels that add up so many spill registers.

    XLA splits and computes the products where rows of plain weights are many, the mesh does not
    divide the weights, or there is no GPU.

    Args:
        axes: The mesh; None for one device.
        specs: How each weight is split: over its outputs, or (a weight without norm) its inputs.
        x: `[T, in]`.
        weights: See row_matmul, whole.
        biases: See there.
        norm: See there.
        residual: See there.
        matmul: What computes a device's part, for tests.
        **options: Other arguments of row_matmul.

    Returns:
        `[T, out_j]` for each weight in x's format; split like the weights' outputs.
    """
    whole = partial(row_matmul if matmul is None else matmul, **options)
    is_gpu = matmul is not None or current_target().platform == "gpu"
    is_few = x.shape[0] <= MAX_ROWS or isinstance(weights[0], Quantized)
    parts = [_parts_of(weight, spec) for weight, spec in zip(weights, specs, strict=True)]
    if not (is_gpu and is_few and all(map(partial(_divides, axes), parts, weights))):
        plain = partial(row_matmul, implementation="xla", **options)
        ys = plain(x, weights, biases, norm=norm, residual=residual)
        return ys if residual is None else [summed_once(ys[0])]
    if axes is None or axes.mesh.size == 1:
        return whole(x, weights, biases, norm=norm, residual=residual)
    if specs[0][1] is None:
        assert residual is None
        return axes.map(
            lambda x, weights, biases, norm: list(whole(x, weights, biases, norm=norm)),
            (P(), tuple(parts), tuple(P(s[0]) for s in specs), P()),
            [P(None, s[0]) for s in specs[: 1 if options.get("gated") else None]],
        )(x, tuple(weights), tuple(biases), norm)
    assert norm is None and len(weights) == 1

    def one(x: jax.Array, weight: Weight) -> jax.Array:
        return whole(x, (weight,), (None,))[0]

    y = _over_devices(axes, one, specs[0], x, weights[0]).astype(jnp.float32)
    if biases[0] is not None:
        y = y + biases[0].astype(jnp.float32)[None, :]
    y = y if residual is None else y + residual.astype(jnp.float32)
    return [summed_once(y.astype(x.dtype))]


def sharded_quantized_matmul(
    placement: tuple[MeshAxes, P] | None,
    x: jax.Array,
    weight: Quantized,
    *,
    matmul: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """`quantized_matmul` with a weight that is split over a mesh.

    Args:
        placement: The mesh, and how the weight is split: over its outputs or its inputs, or not.
            None for one device.
        x: `[T, in]`, whole.
        weight: `[out, in]`, whole.
        matmul: What computes a device's part, for tests.

    Returns:
        float32 `[T, out]`, split like the weight's outputs.
    """
    op = quantized_matmul if matmul is None else matmul
    is_gpu = matmul is not None or current_target().platform == "gpu"
    if placement is None or placement[0].mesh.size == 1 or not is_gpu:
        return op(x, *weight)
    axes, spec = placement
    if not _divides(axes, _parts_of(weight, spec), weight):
        return quantized_matmul(x, *weight, implementation="xla")
    return _over_devices(axes, lambda x, w: op(x, *w), spec, x, weight)


def _over_devices(
    axes: MeshAxes, product: Callable[..., jax.Array], spec: P, x: jax.Array, weight: Weight
) -> jax.Array:
    """A product whose weight is split over its outputs, or over its inputs and added up."""
    outputs, inputs = spec

    def local(x: jax.Array, weight: Weight) -> jax.Array:
        part = product(x, weight)
        return part if inputs is None else lax.psum(part, inputs)

    in_specs = P(None, inputs), _parts_of(weight, spec)
    return axes.map(local, in_specs, P(None, outputs))(x, weight)


def _parts_of(weight: Weight, spec: P) -> Any:
    """How each array of a weight is split: scales like what they are of; one group is for all."""
    if not isinstance(weight, Quantized):
        return spec
    scales = spec if weight.scales.shape[1] > 1 else P(spec[0], None)
    return Quantized(spec, scales, None if weight.zeros is None else scales)  # type: ignore[arg-type]


def summed_once(residual: jax.Array) -> jax.Array:
    """The residual stream, as it is.

    XLA for GPUs would rather add up all layers' results anew, in each layer more of them, than read
    their sum.
    """
    is_gpu = current_target().platform == "gpu"
    return lax.optimization_barrier(residual) if is_gpu else residual


def sharded_rotate(
    axes: MeshAxes | None,
    q: jax.Array,
    k: jax.Array,
    cos_sin: tuple[jax.Array, jax.Array],
    norms: tuple[jax.Array, jax.Array] | None,
    *,
    eps: float,
    rotation: Callable[..., list[jax.Array]] = normed_rotate,
) -> list[jax.Array]:
    """`normed_rotate` with heads split over a mesh.

    Args:
        axes: The mesh; None for one device.
        q: See normed_rotate, whole; likewise the others.
        k: See there.
        cos_sin: cos and sin.
        norms: q_norm and k_norm, or None.
        eps: See there.
        rotation: What computes a device's part.
    """
    q_norm, k_norm = norms or (None, None)
    options = {"q_norm": q_norm, "k_norm": k_norm}
    if axes is None or axes.mesh.size == 1:
        return list(rotation(q, k, *cos_sin, **options, eps=eps))
    heads, kv_heads = P(None, axes.heads, None), P(None, axes.kv_heads, None)
    return axes.map(
        lambda q, k, cos, sin, options: list(rotation(q, k, cos, sin, **options, eps=eps)),
        (heads, kv_heads, P(), P(), P()),
        [heads, kv_heads],
    )(q, k, *cos_sin, options)


def sharded_quantized_write(
    axes: MeshAxes | None,
    operands: WriteOperands,
    *,
    write: Callable[[WriteOperands], Written] = quantized_write,
) -> Written:
    """`quantized_write` with kv heads split over a mesh.

    Args:
        axes: The mesh; None for one device.
        operands: See quantized_write, whole.
        write: What writes a device's part.

    Returns:
        See there; kv heads split.
    """
    if axes is None or axes.mesh.size == 1:
        return write(operands)
    pages, heads = P(None, None, axes.kv_heads, None), P(None, axes.kv_heads, None)
    scales = P(None, axes.kv_heads)
    cache = pages, pages, scales, scales
    specs = WriteOperands(*cache, heads, heads, P(), P())
    return axes.map(write, (specs,), cache)(operands)


def _divides(axes: MeshAxes | None, parts: Any, weight: Weight) -> bool:
    """Whether the arrays of a weight can be split so."""

    def ways(entry: Any) -> int:
        names = entry if isinstance(entry, tuple) else (entry,)
        return 1 if axes is None else axes.ways(tuple(n for n in names if n is not None))

    specs = jax.tree.leaves(parts, is_leaf=lambda part: isinstance(part, P))
    return all(
        size % ways(entry) == 0
        for array, spec in zip(jax.tree.leaves(weight), specs, strict=True)
        for size, entry in zip(array.shape, spec, strict=True)
    )
