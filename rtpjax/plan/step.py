"""Compiles a model's step for GPUs that are not there, from shapes alone.

The program is the runner's own `forward` (rtpjax.engine.step): all of a step but choosing tokens.
"""

from __future__ import annotations

import contextlib
import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from pallas_kernels.registry import tracing_for
from rtpjax import sharding
from rtpjax.engine import step as engine_step
from rtpjax.engine.batch import NUM_ROW_FIELDS, Bucket, Layout
from rtpjax.engine.kv_cache import declare, pages_for, windows_of
from rtpjax.engine.sampling import (
    MAX_BAD_WORD_TOKENS,
    MAX_BAD_WORDS,
    MAX_BIASES,
    SlotState,
)
from rtpjax.engine.wants import EVERYTHING, Wants
from rtpjax.gpus import Gpu
from rtpjax.models import Caches, ModelConfig, PagedCache, Pages, Precision
from rtpjax.models.cache_write import has_scales
from rtpjax.plan.limits import declared


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What decides the shapes of a compiled step.

    Attributes:
        bucket: Kind, tokens and rows.
        max_model_len: Sets the width of page tables.
        page_size: Tokens a page holds.
        num_pages: Pages of each cache group.
        max_num_seqs: Slots of per-request state.
    """

    bucket: Bucket
    max_model_len: int
    page_size: int
    num_pages: int
    max_num_seqs: int

    def layout(self, specs: tuple[Pages, ...]) -> Layout:
        """Of the packed vector, for a model whose layers keep this."""
        width = pages_for(self.max_model_len, self.page_size)
        return Layout(self.bucket, width, len(windows_of(specs)))


def forward(
    model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh
) -> jax.stages.Wrapped:
    """The jitted program, as the runner makes it.

    (params, vector, caches, tokens) -> (logits, rows, caches, tokens); caches and tokens are
    donated.
    """
    step = engine_step.Model.of(model, precision, mesh)
    group = NamedSharding(mesh, PartitionSpec(sharding.DP))
    caches = jax.tree.map(lambda pages: pages.sharding, caches_of(model, precision, shape, mesh))
    return jax.jit(
        partial(engine_step.forward, step, shape.layout(step.cache_specs)),
        donate_argnums=(2, 3),
        keep_unused=True,
        out_shardings=(group, group, caches, group),
    )


def caches_of(model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh) -> Caches:
    """The caches that a step updates, as shapes with shardings."""
    _, specs = declared(model, precision)
    num_pages = [shape.num_pages] * len(windows_of(specs))
    return declare(specs, num_pages, shape.page_size, precision.cache, mesh)


def abstract_arguments(
    model: ModelConfig, precision: Precision, shape: StepShape, mesh: Mesh
) -> tuple[Any, ...]:
    """The arguments of `forward` as shapes with shardings."""
    group = NamedSharding(mesh, PartitionSpec(sharding.DP))

    def whole(size: tuple[int, ...]) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(size, jnp.int32, sharding=group)

    params, specs = declared(model, precision)
    arrays = tuple(
        jax.ShapeDtypeStruct(
            spec.shape, spec.dtype, sharding=sharding.named_sharding(mesh, spec.axes, spec.shape)
        )
        for spec in params.values()
    )
    caches = caches_of(model, precision, shape, mesh)
    tokens = whole((shape.max_num_seqs, shape.max_model_len + 1))
    return arrays, whole((shape.layout(specs).size,)), caches, tokens


def argument_names(model: ModelConfig, precision: Precision, num_caches: int) -> list[str]:
    """Names of the compiled program's parameters, in order."""
    parts = PagedCache._fields if has_scales(precision.cache) else PagedCache._fields[:2]
    caches = [f"caches[{i}].{part}" for i in range(num_caches) for part in parts]
    return [*declared(model, precision)[0], "vector", *caches, "tokens"]


def compile_step(
    model: ModelConfig,
    precision: Precision,
    shape: StepShape,
    mesh: Mesh,
    gpu: Gpu | None = None,
    options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """The step, compiled for the mesh.

    Args:
        model, precision, shape: What is compiled.
        mesh: Of devices that are there, or of a topology (rtpjax.plan.topology).
        gpu: What a topology is made of; None for devices that are there.
        options: Go to XLA, before those of the runner.
    """
    function = forward(model, precision, shape, mesh)
    arguments = abstract_arguments(model, precision, shape, mesh)
    with _tracing_for(gpu):
        return function.lower(*arguments).compile(engine_step.COMPILER_OPTIONS | (options or {}))


def compile_choose(
    model: ModelConfig,
    num_rows: int,
    shape: StepShape,
    mesh: Mesh,
    gpu: Gpu | None = None,
    *,
    wants: Wants = EVERYTHING,
    options: dict[str, Any] | None = None,
) -> jax.stages.Compiled:
    """The program that chooses a token for each row, as the runner makes it.

    Args:
        model, shape, mesh, gpu: As of compile_step.
        num_rows: Rows of logits.
        wants: Which variant.
        options: Go to XLA, before those of the runner.
    """
    group = NamedSharding(mesh, PartitionSpec(sharding.DP))
    slots, vocab = shape.max_num_seqs, model.vocab_size

    def array(dtype: DTypeLike, *size: int) -> Any:  # stands in for an array
        return jax.ShapeDtypeStruct(size, dtype, sharding=group)

    state = SlotState(
        tokens=None,  # type: ignore[arg-type]  # apart, as they are written
        bias_ids=array(jnp.int32, slots, MAX_BIASES),
        bias_values=array(jnp.float32, slots, MAX_BIASES),
        bias_until=array(jnp.int32, slots, MAX_BIASES),
        bad_words=array(jnp.int32, slots, MAX_BAD_WORDS, MAX_BAD_WORD_TOKENS),
        masks=array(jnp.int32, slots, -(-vocab // 32)),
    )
    arguments = (
        array(jnp.float32, num_rows, vocab),
        array(jnp.int32, num_rows, NUM_ROW_FIELDS),
        array(jnp.bool_, num_rows),
        array(jnp.int32, slots, shape.max_model_len + 1),
        state,
    )
    function = jax.jit(
        partial(engine_step.choose, mesh, vocab, wants),
        donate_argnums=3,
        out_shardings=(NamedSharding(mesh, PartitionSpec()), group),
    )
    with _tracing_for(gpu):
        lowered = function.lower(*arguments)
    platform = mesh.devices.flat[0].platform
    return lowered.compile(engine_step.choose_options(platform, wants) | (options or {}))


def _tracing_for(gpu: Gpu | None) -> contextlib.AbstractContextManager[None]:
    """Kernels are chosen for that GPU; for the devices that are there if it is None."""
    return contextlib.nullcontext() if gpu is None else tracing_for(gpu.target)
